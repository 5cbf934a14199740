//! The commands on tiny random models of the repository, whose reference logits are known.

mod common;

use common::{User, fixture};
use safetensors::SafeTensors;
use testkit::{TEXT_FIXTURES, compare};

/// A float32 tensor of a safetensors file: shape and values.
fn floats(bytes: &[u8], name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
    let values = tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (tensor.shape().to_vec(), values)
}

/// The ids of a fixture, as `--ids` takes them, and its reference logits.
fn expected(name: &str) -> (String, Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = file.tensor("input_ids").unwrap();
    let width = ids.data().len() / ids.shape().iter().product::<usize>();
    let ids: Vec<String> = ids
        .data()
        .chunks_exact(width)
        .map(|id| id.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)).to_string())
        .collect();
    let (shape, values) = floats(&bytes, "logits");
    let (rows, vocab) = (ids.len(), *shape.last().unwrap());
    (ids.join(","), vec![rows, vocab], values)
}

#[test]
fn logits_are_those_of_the_reference() {
    let user = User::new();
    let output = user.path("logits.safetensors");
    for name in TEXT_FIXTURES {
        let (ids, shape, values) = expected(name);
        let model = fixture(name);
        for (flags, bound) in [
            (&["--device", "reference"][..], 1e-3),
            (&["--device", "cpu", "--arithmetic", "f32"], 1e-3),
            (&["--device", "cpu", "--arithmetic", "f32", "--chunk", "7"], 1e-3),
            (&["--device", "cpu"], 2e-2),
        ] {
            let mut arguments = vec!["logits", "-m", model.to_str().unwrap(), "--ids", &ids];
            arguments.extend(["--output", output.to_str().unwrap()]);
            arguments.extend(flags);
            user.run(&arguments).ok();
            let (found_shape, found) = floats(&std::fs::read(&output).unwrap(), "logits");
            assert_eq!(found_shape, shape, "{name}");
            compare::assert_close(&found, &values, bound, &format!("{name} {flags:?}"));
        }
    }
}

#[test]
fn refused_ids_leave_no_file() {
    let user = User::new();
    let model = fixture("qwen2");
    let arguments = |ids| ["logits", "-m", model.to_str().unwrap(), "--ids", ids, "--output", "x.safetensors"];
    user.run(&arguments("1,320")).fails(2, &["320", "vocabulary"]);
    let many = vec!["1"; 600].join(",");
    user.run(&arguments(&many)).fails(2, &["--ids", "600", "512"]);
    assert!(!user.path("x.safetensors").exists());
    assert_eq!(user.run(&arguments("1,319")).code, Some(0));
    assert_eq!(user.files(), ["x.safetensors"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_place_that_cannot_be_written_is_known_before_the_model_is_opened() {
    let user = User::new();
    for (path, word) in [("/proc/out", "/proc/out"), ("none/out", "no directory none"), (".", "directory")] {
        user.run(&["run", "-m", "no-such", "x", "-o", path]).fails(1, &[word]);
        user.run(&["logits", "-m", "no-such", "--ids", "1", "-o", path]).fails(1, &[word]);
    }
    // What is no regular file is written as it is.
    let model = fixture("qwen2");
    let arguments = ["logits", "-m", model.to_str().unwrap(), "--ids", "1", "-o"];
    user.run(&[&arguments[..], &["/dev/full"]].concat()).fails(1, &["/dev/full"]);
    user.run(&[&arguments[..], &["/dev/null"]].concat()).ok();
    assert!(user.files().is_empty(), "{:?}", user.files());
}

#[test]
fn families_have_one_name_in_both_formats() {
    let user = User::new();
    let directory = testkit::Fixture::load("gemma3").dir;
    let file = user.write("gemma-it.gguf", testkit::convert::to_gguf(&directory).finish());
    let inspect = |path: &str, flags: &[&str]| user.run(&[&["inspect", path][..], flags].concat());
    for path in [file.to_str().unwrap(), fixture("gemma3").to_str().unwrap()] {
        assert_eq!(inspect(path, &["--json"]).json()["model"]["architecture"], "gemma3");
    }
    // A Gemma that is called -it has a template though its file carries none.
    let path = file.to_str().unwrap();
    assert!(inspect(path, &[]).ok().contains("chat template  built in"), "{:?}", inspect(path, &[]));
    assert_eq!(inspect(path, &["--json"]).json()["has_template"], true);
}

#[test]
fn a_template_is_printed_as_the_file_has_it() {
    let user = User::new();
    let mut file = testkit::convert::to_gguf(&testkit::Fixture::load("llama").dir);
    let template = "a\u{1b}[31mb\tc";
    let path = user.write("a.gguf", file.str("tokenizer.chat_template", template).finish());
    assert_eq!(user.run(&["inspect", path.to_str().unwrap(), "--template"]).ok(), format!("{template}\n"));

    let path = user.write("b.gguf", file.str("tokenizer.chat_template", "{% if %}").finish());
    let path = path.to_str().unwrap();
    assert!(user.run(&["inspect", path]).ok().contains("chat template  unusable ("));
    // What needs no template does without it, and says so; what needs it fails.
    let scored = user.run(&["logits", "-m", path, "--ids", "1", "-o", "x"]);
    scored.ok();
    assert!(scored.err.contains("chat template cannot be used"), "{scored:?}");
    user.run(&["chat", "-m", path]).fails(1, &["b.gguf", "template"]);
}

#[test]
fn a_template_of_ones_own_is_blamed_for_its_errors() {
    let user = User::new();
    let model = testkit::speaking("qwen2", user.home.path()).unwrap();
    let path = model.to_str().unwrap();
    let messages = user.write("m.json", r#"[{"role": "user", "content": "Hi"}]"#);
    let messages = messages.to_str().unwrap();
    user.write("t.jinja", "{{ raise_exception('no users') }}");
    for arguments in [&["template", "-m", path, "--messages", messages][..], &["run", "-m", path, "x"]] {
        let ran = user.run(&[arguments, &["--chat-template", "t.jinja"]].concat());
        ran.fails(1, &["t.jinja", "no users"]);
        assert!(!ran.err.lines().last().unwrap().contains("qwen2"), "{ran:?}");
    }

    // Tools that a template leaves out are told of.
    user.write("t.jinja", "{{ messages[0].content }}");
    let tools = user.write("tools.json", r#"[{"type": "function", "function": {"name": "f"}}]"#);
    let template = ["template", "-m", path, "--messages", messages, "--tools", tools.to_str().unwrap()];
    let told = user.run(&template);
    assert!(told.ok().contains("<tools>") && told.err.is_empty(), "{told:?}");
    let left_out = user.run(&[&template[..], &["--chat-template", "t.jinja"]].concat());
    assert_eq!(left_out.ok(), "Hi");
    assert!(left_out.err.contains("does not read tools"), "{left_out:?}");
}

#[test]
fn a_footer_tells_who_ended_the_answer() {
    let user = User::new();
    let model = testkit::speaking("qwen2", user.home.path()).unwrap();
    let run = |more: &[&str]| user.run(&[&["run", "-m", model.to_str().unwrap(), "x", "-n", "8"], more].concat());
    let whole = run(&[]);
    assert!(whole.err.contains("ended by --max-tokens"), "{whole:?}");
    let first: String = whole.ok().chars().take(1).collect();
    let stopped = run(&["--stop", &first]);
    assert_eq!(stopped.ok(), "\n");
    assert!(stopped.err.contains("; ended by --stop; "), "{stopped:?}");
}

#[test]
fn a_model_without_a_tokenizer_is_refused_before_it_is_loaded() {
    let user = User::new();
    let model = fixture("gemma3");
    let text = user.write("text.txt", "some words");
    let file = text.to_str().unwrap();
    for arguments in [&["run", "x"][..], &["perplexity", "--file", file, "--window", "2"]] {
        let ran = user.run(&[arguments, &["-m", model.to_str().unwrap()]].concat());
        ran.fails(1, &["gemma3", "no tokenizer", "unicorn logits --ids"]);
        assert_eq!(ran.err.lines().count(), 1, "nothing was loaded: {ran:?}");
    }
}

#[test]
fn plans_say_what_fits() {
    let user = User::new();
    let model = fixture("gemma3");
    let model = model.to_str().unwrap();
    let plan = user.run(&["plan", "-m", model, "--ctx", "64"]);
    for word in [
        "attention",
        "feed-forward",
        "KV cache",
        "activations",
        "context: 64 tokens (as asked)",
        "GB/s",
        "estimate: cpu",
    ] {
        assert!(plan.ok().contains(word), "{word}: {plan:?}");
    }
    let json = user.run(&["plan", "-m", model, "--ctx", "64", "--json"]).json();
    assert_eq!((&json["plan"]["fits"], &json["plan"]["context"]), (&true.into(), &64.into()));
    assert_eq!(json["model"]["architecture"], "gemma3");
    assert!(json["plan"]["estimate"]["total"]["decode_s"].as_f64().is_some_and(|seconds| seconds > 0.0), "{json}");
    // A dry run is the same, and computes nothing: not even a prompt is needed. (Free memory differs from run to run.)
    let dry = user.run(&["run", "--dry-run", "-m", model, "--ctx", "64", "--json"]).json();
    assert_eq!(dry["plan"]["placement"], json["plan"]["placement"]);
    assert_eq!(dry["plan"]["devices"][0]["total"], json["plan"]["devices"][0]["total"]);

    let short = user.run(&["plan", "-m", model, "--cpu-memory", "10KB"]);
    short.fails(1, &["short", "gemma3"]);
    assert!(short.out.contains("DOES NOT FIT"), "the plan comes first: {short:?}");
    let logits = ["logits", "-m", model, "--cpu-memory", "10KB", "--ids", "1", "-o", "x"];
    user.run(&logits).fails(1, &["does not fit", "gemma3"]);
    user.run(&["plan", "-m", model, "--ctx", "1000000"]).fails(2, &["--ctx", "1000000", "512"]);
    user.run(&["bench", "-m", model, "-p", "1000000"]).fails(2, &["-p, -n and -d", "1000000", "512"]);
    user.run(&["bench", "-m", model, "--ctx", "1000000"]).fails(2, &["--ctx", "1000000", "512"]);
    user.run(&["plan", "-m", model, "--device", "vulkan:99"]).fails(2, &["vulkan:99"]);
    user.run(&["plan", "-m", model, "--place", "head=npu"]).fails(2, &["npu", "cpu"]);
}

#[test]
fn directories_are_inspected() {
    let user = User::new();
    let model = fixture("gemma3");
    let model = model.to_str().unwrap();
    let text = user.run(&["inspect", model]).ok().to_owned();
    for word in ["Hugging Face directory", "gemma3", "BF16", "self_attn.q_proj.weight", "chat template  no"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let json = user.run(&["inspect", "-m", model, "--json", "-v"]).json();
    assert_eq!(json["types"][0]["type"], "BF16");
    assert!(json["parameters"].as_u64().unwrap() > 0 && json["tokenizer"].is_null(), "{json}");
    user.run(&["inspect", model, "--template"]).fails(2, &["no chat template"]);
    user.run(&["run", "-m", model, "x"]).fails(1, &["tokenizer"]);
    user.run(&["chat", "-m", model]).fails(2, &["base model", "unicorn run"]);
}

#[test]
fn benches_print_what_scripts_read() {
    let user = User::new();
    let model = fixture("llama");
    let mut arguments = vec!["bench", "-m", model.to_str().unwrap(), "-p", "16", "-n", "4", "-t", "1", "-r", "2"];
    arguments.extend(["--device", "cpu"]);
    let table = user.run(&arguments);
    assert!(table.ok().contains("pp16") && table.out.contains("tg4"), "{table:?}");
    arguments.push("--json");
    let json = user.run(&arguments).json();
    for (index, test) in ["pp16", "tg4"].iter().enumerate() {
        let result = &json["results"][index];
        assert_eq!(result["test"], *test);
        let rates = result["tok_per_s"].as_array().unwrap();
        assert!(rates.len() == 2 && rates.iter().all(|rate| rate.as_f64().unwrap() > 0.0), "{json}");
    }
    assert_eq!(json["threads"], 1);
}

#[test]
fn benches_print_every_format_and_compare() {
    let user = User::new();
    let model = fixture("gemma3");
    let mut arguments = vec!["bench", "-m", model.to_str().unwrap(), "-p", "8,4", "-n", "4", "-d", "0,40", "-b", "1,2"];
    arguments.extend(["-t", "1", "-r", "2", "--device", "cpu"]);
    let run = |more: &[&str]| user.run(&[&arguments[..], more].concat());
    let tests = ["pp8", "pp4", "tg4", "tg4 b2", "pp8 @ d40", "pp4 @ d40", "tg4 @ d40", "tg4 b2 @ d40"];

    let text = run(&[]);
    let lines: Vec<&str> = text.ok().lines().collect();
    assert!(lines[0].contains("1 threads; measured roofs: read ") && lines[1].is_empty(), "{text:?}");
    let names: Vec<&str> = lines[4..12].iter().map(|line| line.split('|').nth(1).unwrap().trim()).collect();
    assert_eq!(names, tests, "{text:?}");
    assert!(lines[2..12].iter().all(|line| line.chars().count() == lines[2].chars().count()), "{text:?}");

    let text = run(&["--format", "csv"]);
    let lines: Vec<&str> = text.ok().lines().collect();
    assert_eq!(lines.len(), 9, "{text:?}");
    let columns = lines[0].split(',').count();
    assert!(lines.iter().all(|line| line.split(',').count() == columns), "{text:?}");

    let json = run(&["--format", "json"]).json();
    let found: Vec<&str> =
        json["results"].as_array().unwrap().iter().map(|result| result["test"].as_str().unwrap()).collect();
    assert_eq!(found, tests);
    assert!(json["notes"].is_array() && json["shape"].is_null() && json["interrupted"] == false, "{json}");

    // What was written is read: the same model, with a test more and one fewer.
    let mut baseline = json.clone();
    let results = baseline["results"].as_array_mut().unwrap();
    results[0]["test"] = "pp9".into();
    results[1]["tok_per_s"] = serde_json::json!([1e12, 2e12]);
    let path = user.write("baseline.json", baseline.to_string());
    let compared = run(&["--json", "--compare", path.to_str().unwrap()]).json();
    let comparison = &compared["comparison"];
    assert_eq!(comparison["not_run"], serde_json::json!(["pp9"]));
    assert_eq!(comparison["not_in_baseline"], serde_json::json!(["pp8"]));
    assert_eq!(comparison["tests"].as_array().unwrap().len(), 7);
    assert_eq!(comparison["tests"][0]["verdict"], "slower");
    let text = run(&["--compare", path.to_str().unwrap()]);
    assert!(text.ok().contains("| slower |") || text.out.contains("slower"), "{text:?}");
    assert!(text.out.contains("note: in the baseline and not run now: pp9"), "{text:?}");
    let wrong = user.write("wrong.json", "{\"results\": 1}");
    run(&["--compare", wrong.to_str().unwrap()]).fails(1, &["--compare", "wrong.json", "--format json"]);
}

#[test]
fn benches_time_shapes_without_a_file() {
    let user = User::new();
    let shape = ["bench", "--shape", "gemma3-270m:q4_0", "-t", "2", "-r", "1", "-p", "4", "-n", "2"];
    let text = user.run(&[&shape[..], &["--layers", "1"]].concat());
    assert!(text.ok().starts_with("gemma3-270m:q4_0, 1 of 18 layers on cpu"), "{text:?}");
    assert!(text.out.contains("1 of 18 layers were timed; nothing is extrapolated"), "{text:?}");
    user.run(&[&shape[..], &["--cpu-memory", "1MiB"]].concat()).fails(1, &["does not fit", "short", "--layers"]);
}

#[test]
fn devices_are_described_and_measured() {
    let user = User::new();
    assert!(user.run(&["devices"]).ok().contains("GB/s"));
    let json = user.run(&["devices", "--json", "-t", "1"]).json();
    assert_eq!((&json["devices"][0]["name"], &json["devices"][0]["threads"]), (&"cpu".into(), &1.into()));
    assert!(json["devices"][0]["read_bytes_per_s"].as_f64().unwrap() > 1e8);
    user.run(&["devices", "--isa", "mmx"]).fails(2, &["mmx"]);
}
