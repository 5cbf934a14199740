//! `unicorn tune` on the first Vulkan device there is: what it keeps is taken, what is damaged or foreign is not.

mod common;

use std::path::Path;

use common::{User, fixture};
use serde_json::{Value, json};

const DEVICE: &str = "vulkan:0";

fn has_device(user: &User) -> bool {
    let found = user.run(&["devices", "--json"]).json();
    let there = found["devices"].as_array().unwrap().iter().any(|device| device["name"] == DEVICE);
    assert!(there || std::env::var_os("UNICORN_REQUIRE_VULKAN").is_none(), "{found}");
    there
}

/// The ids of a prompt, and the likeliest id after it.
fn likeliest(user: &User, model: &str) -> String {
    let ids = (1..24).map(|id| id.to_string()).collect::<Vec<_>>().join(",");
    let output = user.path("logits.safetensors");
    let output = output.to_str().unwrap();
    user.run(&["logits", "-m", model, "--device", DEVICE, "--chunk", "1", "--ids", &ids, "--output", output]).ok();
    let bytes = std::fs::read(output).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = file.tensor("logits").unwrap();
    let values: Vec<f32> = logits.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let last = &values[values.len() / 23 * 22..];
    let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
    format!("{best} {:.1}", last[best])
}

fn notes(user: &User, model: &str) -> String {
    let plan = user.run(&["plan", "-m", model, "--device", DEVICE, "--ctx", "64"]);
    plan.ok().lines().filter(|line| line.contains("tuning")).collect()
}

#[test]
fn what_is_chosen_is_kept_and_taken() {
    let user = User::new();
    if !has_device(&user) {
        println!("skipped: no Vulkan device");
        return;
    }
    let model = fixture("qwen2");
    let model = model.to_str().unwrap();
    let by_rule = likeliest(&user, model);

    let tuned = user.run(&["tune", "-m", model, "--device", DEVICE, "--batches", "1", "--json"]).json();
    let kernels = tuned["kernels"].as_array().unwrap();
    assert!(!kernels.is_empty() && tuned["excluded"] == json!([]), "{tuned}");
    for kernel in kernels {
        assert!(kernel["chosen_us"].as_f64() <= kernel["rule_us"].as_f64(), "{kernel}");
        assert!(kernel["variants"].as_u64().unwrap() > 1, "{kernel}");
    }
    let path = Path::new(tuned["file"].as_str().unwrap());
    let mut kept: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let changed = kernels.iter().filter(|kernel| kernel["chosen"] != kernel["rule"]).count();
    assert_eq!(kept["choices"].as_object().unwrap().len(), changed, "{kept}");
    assert_eq!(notes(&user, model), "");

    // Another variant of every kernel computes the same.
    for kernel in kernels {
        let name = kernel["kernel"].as_str().unwrap();
        let subgroups = if name.contains("normed") { 16 } else { 8 };
        kept["choices"][name] = json!(format!("rows 1 ahead 1 subgroups {subgroups} resident 0"));
    }
    std::fs::write(path, kept.to_string()).unwrap();
    assert_eq!(notes(&user, model), "");
    assert_eq!(likeliest(&user, model), by_rule);

    // What is absurd is not taken, what is damaged or foreign is said.
    kept["choices"][kernels[0]["kernel"].as_str().unwrap()] = json!("rows 4000000000 ahead 0 subgroups 0 resident 0");
    std::fs::write(path, kept.to_string()).unwrap();
    assert_eq!(likeliest(&user, model), by_rule);
    kept["kernels"] = json!("of another driver");
    for (content, word) in [(kept.to_string(), "another driver"), ("{".to_owned(), "damaged")] {
        std::fs::write(path, content).unwrap();
        let notes = notes(&user, model);
        assert!(notes.contains(word) && notes.contains("unicorn tune"), "{notes}");
        assert_eq!(likeliest(&user, model), by_rule);
    }

    assert!(user.run(&["tune", "--device", DEVICE, "--reset"]).ok().contains("removed"));
    assert!(!path.exists());
    assert!(user.run(&["tune", "--device", DEVICE, "--reset"]).ok().contains("nothing was chosen"));
}

#[test]
fn what_cannot_be_tuned_is_misuse() {
    let user = User::new();
    let model = fixture("qwen2");
    let model = model.to_str().unwrap();
    user.run(&["tune", "-m", model, "--device", "cpu"]).fails(2, &["cpu", "Vulkan"]);
    user.run(&["tune", "-m", model, "--device", "vulkan:99"]).fails(2, &["vulkan:99"]);
    user.run(&["tune", "--shape", "none:q4_0", "--device", DEVICE]).fails(2, &["none"]);
    user.run(&["tune", "-m", model, "--device", DEVICE, "--batches", "17"]).fails(2, &["17"]);
}
