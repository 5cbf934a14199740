//! `quantize`, `imatrix`, `compare` and `--quantize` on a tiny model with a tokenizer.

mod common;

use std::path::PathBuf;

use common::User;
use serde_json::Value;
use testkit::speaking;

/// A user with a model directory and a text.
struct Setting {
    user: User,
    model: String,
    text: String,
}

fn setting() -> Setting {
    let user = User::new();
    let model = speaking("qwen2", user.home.path()).unwrap().display().to_string();
    let words = ["the", "hand", "of", "one", "who", "sees", "the", "land", "near", "a", "stone", "and", "is", "there"];
    let text: String = (0..700).map(|i| words[(i * i + i / 3) % words.len()]).collect::<Vec<_>>().join(" ");
    let text = user.write("text.txt", text).display().to_string();
    Setting { user, model, text }
}

impl Setting {
    fn quantize(&self, flags: &[&str]) -> common::Ran {
        self.user.run(&[&["quantize", self.model.as_str(), "out.gguf"], flags].concat())
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.user.path(name)).unwrap()).unwrap()
    }

    fn out(&self) -> PathBuf {
        self.user.path("out.gguf")
    }
}

#[test]
fn a_report_says_what_the_file_is() {
    let setting = setting();
    setting.quantize(&["--preset", "q8_0", "--report", "report.json"]).ok();
    let report = setting.json("report.json");
    let quantize = &report["quantize"];
    assert_eq!(quantize["file_bytes"], std::fs::metadata(setting.out()).unwrap().len());
    assert_eq!(quantize["groups"]["ffn_up"]["types"]["Q8_0"], quantize["groups"]["ffn_up"]["tensors"]);
    assert_eq!(quantize["groups"]["attn_norm"]["types"]["F32"], quantize["groups"]["attn_norm"]["tensors"]);
    assert!(report["peak_memory_bytes"].as_u64().unwrap() > 0);
    let listed = setting.user.run(&["inspect", "out.gguf"]);
    assert!(listed.ok().contains("Q8_0"), "{}", listed.out);
}

#[test]
fn what_is_packed_while_loading_answers_as_the_file_does() {
    let setting = setting();
    setting.quantize(&["--preset", "balanced"]).ok();
    let ask = |model: &str, flags: &[&str]| {
        let run = ["run", "-m", model, "--raw", "--device", "cpu", "--max-tokens", "12", "--ignore-eos", "--json"];
        setting.user.run(&[&run[..], flags, &["the hand of"]].concat()).json()["token_ids"].clone()
    };
    assert_eq!(ask(&setting.model, &["--quantize", "balanced"]), ask("out.gguf", &[]));
    let unknown = setting.user.run(&["run", "-m", &setting.model, "--quantize", "q9", "x"]);
    unknown.fails(2, &["--quantize", "q9", "balanced"]);
}

#[test]
fn degradation_is_measured_and_can_be_a_gate() {
    let setting = setting();
    let evaluate = ["--preset", "q4_0", "--device", "cpu", "--windows", "2", "--evaluate", &setting.text];
    let found = setting.quantize(&[&evaluate[..], &["--report", "report.json", "--max-degradation", "1000%"]].concat());
    found.ok();
    let comparison = setting.json("report.json")["comparison"].clone();
    assert_eq!(comparison["model"]["windows"], 2);
    assert!(comparison["kl_mean"].as_f64().unwrap() > 0.0, "{comparison}");

    let compared = ["compare", "--reference", &setting.model, "--model", "out.gguf", "--file", &setting.text];
    let compared = setting.user.run(&[&compared[..], &["--device", "cpu", "--windows", "2", "--json"]].concat()).json();
    assert_eq!(compared["comparison"]["kl_mean"], comparison["kl_mean"]);
    assert_eq!(compared["model"]["bytes"], std::fs::metadata(setting.out()).unwrap().len());

    // Perplexity cannot fall to nothing: the gate closes.
    let reference = comparison["reference"]["ppl"].as_f64().unwrap();
    if comparison["model"]["ppl"].as_f64().unwrap() > reference {
        let shut = setting.quantize(&[&evaluate[..], &["--force", "--max-degradation", "0"]].concat());
        shut.fails(1, &["perplexity rose", "--max-degradation"]);
    }
}

#[test]
fn importance_is_collected_and_used() {
    let setting = setting();
    for name in ["imatrix.gguf", "imatrix.dat"] {
        let collect = ["imatrix", "-m", &setting.model, "--file", &setting.text, "--output", name];
        setting.user.run(&[&collect[..], &["--windows", "2", "--device", "cpu"]].concat()).ok();
        setting.quantize(&["--preset", "q4_0", "--force", "--imatrix", name]).ok();
        let weighed = std::fs::read(setting.out()).unwrap();
        setting.quantize(&["--preset", "q4_0", "--force"]).ok();
        assert_ne!(weighed, std::fs::read(setting.out()).unwrap(), "{name}");
    }
    setting.quantize(&["--force", "--imatrix", "text.txt"]).fails(1, &["text.txt"]);
}

#[test]
fn a_target_is_searched_for() {
    let setting = setting();
    let flags = ["--text", &setting.text, "--text-windows", "1", "--device", "cpu", "--report", "report.json"];
    let search = |target: &[&str]| setting.quantize(&[target, &flags, &["--force"]].concat());
    setting.quantize(&["--preset", "q8_0"]).ok();
    let large = std::fs::metadata(setting.out()).unwrap().len();
    setting.quantize(&["--preset", "q4_0", "--force", "--rule", ".*=q4_0"]).ok();
    let small = std::fs::metadata(setting.out()).unwrap().len();

    let size = (large + small) / 2;
    search(&["--target-size", &size.to_string()]).ok();
    let found = std::fs::metadata(setting.out()).unwrap().len();
    assert!(found <= size && found > small, "{small} < {found} <= {size}");
    let report = setting.json("report.json");
    let kl = report["search"]["kl"].as_f64().unwrap();
    assert!(kl > 0.0 && report["search"]["sensitivities"].as_array().unwrap().len() > 7, "{}", report["search"]);

    // What was reached in that size is a divergence that can be asked for.
    search(&["--target-kld", &(1.5 * kl).to_string()]).ok();
    assert!(setting.json("report.json")["search"]["kl"].as_f64().unwrap() <= 1.5 * kl);
    assert!(std::fs::metadata(setting.out()).unwrap().len() < large);

    search(&["--target-size", "1000"]).fails(2, &["1000", "bytes"]);
    search(&["--target-kld", "1e-12"]).fails(2, &["nats"]);
    setting.quantize(&["--target-size", "1MiB"]).fails(2, &["--text"]);
}

#[test]
fn what_cannot_be_done_leaves_no_file() {
    let setting = setting();
    for (flags, code, says) in [
        (&["--preset", "q9_0"][..], 2, "q9_0"),
        (&["--rule", "nothing=q8_0"], 2, "nothing"),
        (&["--rule", "(=q8_0"], 2, "("),
        (&["--imatrix", "missing.gguf"], 1, "missing.gguf"),
    ] {
        setting.quantize(flags).fails(code, &[says]);
        assert!(!setting.out().exists(), "{flags:?}");
    }
    setting.quantize(&[]).ok();
    setting.quantize(&[]).fails(2, &["out.gguf", "exists"]);
    let hidden: Vec<_> = setting.user.files().into_iter().filter(|name| name.starts_with(".out")).collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}
