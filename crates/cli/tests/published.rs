//! The commands on published models. Token ids and rendered prompts were computed with the models' own Hugging Face
//! tokenizers and templates.

mod common;

use common::User;
use serde_json::{Value, json};
use testkit::published;

const SMOLLM: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";
const QWEN: &str = "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf";

/// The path of a published model, or the end of the test.
macro_rules! model {
    ($file:expr) => {
        match published($file) {
            Some(path) => path.to_str().unwrap().to_owned(),
            None => return,
        }
    };
}

#[test]
fn text_becomes_ids() {
    let user = User::new();
    for (file, flags, text, want) in [
        (SMOLLM, &[][..], "The capital of France is", json!([504, 3575, 282, 4649, 314])),
        (SMOLLM, &[], "Hello, world!", json!([19556, 28, 905, 17])),
        (SMOLLM, &[], "", json!([])),
        (SMOLLM, &[], "<|im_end|>\n", json!([2, 198])),
        (GEMMA, &[], "The capital of France is", json!([818, 5279, 529, 7001, 563])),
        (GEMMA, &["--bos"], "The capital of France is", json!([2, 818, 5279, 529, 7001, 563])),
        (QWEN, &[], "The capital of France is", json!([785, 6722, 315, 9625, 374])),
    ] {
        let Some(model) = published(file) else { continue };
        let arguments = [&["tokenize", "-m", model.to_str().unwrap(), "--json"], flags].concat();
        assert_eq!(user.run_with(&arguments, text).json(), json!({ "ids": want }), "{file} {text:?}");
    }
    let model = model!(SMOLLM);
    let plain = user.run_with(&["tokenize", "-m", &model, "--json", "--no-special"], "<|im_end|>").json();
    assert!(plain["ids"].as_array().unwrap().len() > 1, "{plain}");
    assert!(user.run_with(&["tokenize", "-m", &model], "Hello\n").ok().contains("19556  \"Hello\""));
}

#[test]
fn messages_become_a_prompt() {
    let user = User::new();
    let model = model!(SMOLLM);
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"}]);
    let want = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n\
                <|im_start|>assistant\n";
    let arguments = ["template", "-m", &model, "--messages", "-"];
    assert_eq!(user.run_with(&arguments, messages.to_string()).ok(), want);
    assert_eq!(user.run_with(&arguments, json!({ "messages": messages }).to_string()).ok(), want);

    let model = model!(QWEN);
    user.write("m.json", r#"[{"role": "user", "content": "Hi"}]"#);
    user.write("t.json", r#"[{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]"#);
    let prompt = user.run(&["template", "-m", &model, "--messages", "m.json", "--tools", "t.json"]);
    let tool = r#"{"type": "function", "function": {"name": "get_weather", "parameters": {}}}"#;
    assert!(prompt.ok().contains(&format!("<tools>\n{tool}\n</tools>")), "{prompt:?}");
}

#[test]
fn base_models_have_no_template() {
    let user = User::new();
    let model = model!(GEMMA);
    user.write("m.json", r#"[{"role": "user", "content": "Hi"}]"#);
    user.run(&["template", "-m", &model, "--messages", "m.json"]).fails(2, &["template", "base model"]);
    user.run(&["chat", "-m", &model, "--ctx", "64"]).fails(2, &["base model", "unicorn run"]);
    user.run(&["run", "-m", &model, "--ctx", "64", "--system", "x", "y"]).fails(2, &["--system"]);
    let ran = user.run(&["run", "-m", &model, "--ctx", "64", "The capital of France is", "-n", "4"]);
    assert_eq!(ran.ok(), " the capital of the\n");
    assert!(ran.err.contains("base model"), "{ran:?}");
}

#[test]
fn an_answer_streams_with_a_footer() {
    let user = User::new();
    let model = model!(SMOLLM);
    let ran = user.run(&["run", "-m", &model, "--raw", "--ctx", "256", "The capital of France is", "-n", "2"]);
    assert_eq!(ran.ok(), " Paris.\n");
    for word in ["llama", "on cpu", "context: 256", "prompt 5 tokens", "generated 2", "tok/s", "GB/s", "peak memory"] {
        assert!(ran.err.contains(word), "{word}: {ran:?}");
    }
    // The same from standard input, less its line end, and in silence.
    let arguments = ["run", "-m", &model, "--raw", "--ctx", "256", "-n", "2", "-q"];
    let piped = user.run_with(&arguments, "The capital of France is\n");
    assert_eq!((piped.ok(), piped.err.as_str()), (" Paris.\n", ""));
    let stopped = user.run(&[&arguments[..], &["--stop", "aris", "The capital of France is"]].concat());
    assert_eq!(stopped.ok(), " P\n");
}

#[test]
fn json_tells_everything() {
    let user = User::new();
    let model = model!(SMOLLM);
    let ran = user.run(&["run", "-m", &model, "--ctx", "256", "Hi", "-n", "3", "--json", "-o", "out.json"]);
    let object = ran.json();
    assert_eq!(object["prompt_ids"][0], 1, "the template begins with <|im_start|>");
    assert_eq!(object["token_ids"].as_array().unwrap().len(), 3);
    assert_eq!((&object["finish_reason"], &object["metrics"]["generated_tokens"]), (&"length".into(), &3.into()));
    assert_eq!((&object["model"]["architecture"], &object["plan"]["context"]), (&"llama".into(), &256.into()));
    assert!(object["metrics"]["read_bytes_per_s"].as_f64().unwrap() > 0.0 && object["seed"].is_u64(), "{object}");
    let written: Value = serde_json::from_slice(&std::fs::read(user.path("out.json")).unwrap()).unwrap();
    assert_eq!(written, object);
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let user = User::new();
    let model = model!(SMOLLM);
    let text = |flags: &[&str]| {
        let common = ["run", "-m", &model, "-q", "--ctx", "256", "-n", "12", "--temperature", "1.2", "Tell a story."];
        user.run(&[&common, flags].concat()).ok().to_owned()
    };
    let first = text(&["--seed", "7"]);
    assert_eq!(text(&["--seed", "7"]), first);
    assert_ne!(text(&["--seed", "8"]), first);
}

#[test]
fn prompts_beyond_the_context_are_refused() {
    let user = User::new();
    let model = model!(SMOLLM);
    user.run(&["run", "-m", &model, "--ctx", "8", "Hello there"]).fails(2, &["context holds 8", "--ctx"]);
    let cut = user.run(&["run", "-m", &model, "--raw", "--ctx", "8", "Hello there"]);
    cut.ok();
    assert!(cut.err.contains("the context of 8 tokens is full"), "{cut:?}");
    user.run(&["run", "-m", &model, "--ctx", "64", "--logit-bias", "99999=1", "x"]).fails(2, &["99999"]);
}

#[test]
fn perplexity_of_a_text() {
    let user = User::new();
    let model = model!(SMOLLM);
    user.write("text.txt", "The quick brown fox jumps over the lazy dog. ".repeat(12));
    let arguments = ["perplexity", "-m", &model, "--file", "text.txt", "--window", "32", "--windows", "2"];
    let json = user.run(&[&arguments[..], &["--json"]].concat()).json();
    assert_eq!(json["tokens"], 62);
    let (ppl, nll) = (json["ppl"].as_f64().unwrap(), json["mean_nll"].as_f64().unwrap());
    assert!((nll.exp() - ppl).abs() < 1e-9 && (1.0..20.0).contains(&ppl), "{json}");
    // The windows are independent of the chunk they are computed in, up to the rounding of activations.
    let chunked = user.run(&[&arguments[..], &["--json", "--chunk", "7"]].concat()).json();
    assert!((chunked["mean_nll"].as_f64().unwrap() - nll).abs() < 0.02, "{json} {chunked}");
    assert!(user.run(&arguments).ok().starts_with("perplexity "));
}

#[test]
fn a_conversation_in_a_pipe() {
    let user = User::new();
    let model = model!(SMOLLM);
    let input = "/frobnicate\n/system Be brief.\nSay \\\nhello.\n\"\"\"\nAnd\n\nagain.\n\"\"\"\n/stats\n/save c.json\n\
                 /save /no/such/place\n/clear\n/system\n//path\n/quit\nnot read\n";
    let ran = user.run_with(&["chat", "-m", &model, "--ctx", "256", "-n", "6", "--temperature", "0"], input);
    assert!(!ran.ok().trim().is_empty(), "{ran:?}");
    for word in ["unknown command /frobnicate", "cached", "of 256", "sampling temperature 0", "/no/such/place"] {
        assert!(ran.err.contains(word), "{word}: {ran:?}");
    }
    assert!(ran.err.contains("system: Be brief."), "/clear keeps the system message: {ran:?}");
    let saved: Value = serde_json::from_slice(&std::fs::read(user.path("c.json")).unwrap()).unwrap();
    let roles: Vec<_> = saved.as_array().unwrap().iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!((&saved[1]["content"], &saved[3]["content"]), (&"Say \nhello.".into(), &"And\n\nagain.".into()));
    // What is saved can be rendered.
    user.run(&["template", "-m", &model, "--messages", "c.json"]).ok();
}

#[test]
fn a_full_context_is_told_in_a_conversation() {
    let user = User::new();
    let model = model!(SMOLLM);
    let input = "Tell me a long story.\nGo on.\n/clear\nHi\n";
    let ran = user.run_with(&["chat", "-m", &model, "--ctx", "48", "--temperature", "0"], input);
    ran.ok();
    assert!(ran.err.contains("the context of 48 tokens is full"), "{ran:?}");
    assert!(ran.err.contains("the context holds 48: /clear"), "the next message is refused: {ran:?}");
    assert_eq!(ran.err.matches("tok/s").count(), 2, "after /clear there is room: {ran:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_an_answer_with_its_footer() {
    use std::{io::Read, process::Stdio};
    let user = User::new();
    let model = model!(SMOLLM);
    let arguments = ["run", "-m", &model, "--ignore-eos", "Tell me a long story.", "-o", "out.json"];
    let mut command = user.command(&arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Once text comes, the answer is under way.
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 8]).unwrap();
    interrupt(&child);
    std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("interrupted") && err.contains("tok/s"), "{err}");
    let written: Value = serde_json::from_slice(&std::fs::read(user.path("out.json")).unwrap()).unwrap();
    assert_eq!(written["finish_reason"], "cancelled");
}

/// Sends SIGINT, as Ctrl-C in another process's terminal does.
#[cfg(unix)]
fn interrupt(child: &std::process::Child) {
    let status = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[cfg(unix)]
#[test]
fn ctrl_c_in_a_piped_conversation_stops_the_answer_and_then_the_program() {
    use std::{
        io::{Read, Write},
        process::Stdio,
    };
    let user = User::new();
    let model = model!(SMOLLM);
    let mut command = user.command(&["chat", "-m", &model, "--ctx", "4096", "--logit-bias", "2=-inf"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut out = child.stdout.take().unwrap();
    input.write_all(b"Tell me a long story.\n").unwrap();
    out.read_exact(&mut [0; 8]).unwrap();
    interrupt(&child);
    // A second one, in the middle of stopping or of measuring, takes nothing away.
    interrupt(&child);
    input.write_all(b"/save c.json\n").unwrap();
    for _ in 0..600 {
        if user.path("c.json").exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let saved: Value = serde_json::from_slice(&std::fs::read(user.path("c.json")).unwrap()).unwrap();
    assert_eq!(saved.as_array().unwrap().len(), 2, "question and answer: {saved}");
    // Nothing is at work now.
    interrupt(&child);
    std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("interrupted]"), "{err}");
}

/// A conversation on a terminal that Python's pty makes: signals while nothing is at work, in the middle of an answer
/// and right after it, and the conversation is still there to be saved. SIGTERM is another matter.
#[cfg(unix)]
#[test]
fn ctrl_c_never_ends_a_conversation_on_a_terminal() {
    const SCRIPT: &str = r#"
import os, pty, select, signal, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = b""
def wait(word, seconds=120):
    global seen
    end = time.time() + seconds
    while word not in seen:
        assert time.time() < end and select.select([fd], [], [], end - time.time())[0], (word, seen)
        seen += os.read(fd, 4096)
    seen = seen[seen.index(word) + len(word):]
def ctrl_c(times):
    for _ in range(times):
        os.kill(pid, signal.SIGINT)
        time.sleep(0.02)
wait(b"> ")
ctrl_c(3)
os.write(fd, b"Tell me a long story.\r")
wait(b"story.")
time.sleep(1)
ctrl_c(10)
wait(b"interrupted")
ctrl_c(3)
wait(b"> ")
os.write(fd, b"/save c.json\r")
wait(b"messages written")
wait(b"> ")
os.kill(pid, signal.SIGTERM)
try:
    while os.read(fd, 4096):
        pass
except OSError:
    pass
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
"#;
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: there is no python3");
        return;
    }
    let user = User::new();
    let model = model!(SMOLLM);
    let mut command = std::process::Command::new("python3");
    command.args(["-c", SCRIPT, env!("CARGO_BIN_EXE_unicorn"), "chat", "-m", &model, "--ctx", "4096"]);
    command.args(["--logit-bias", "2=-inf"]).current_dir(user.home.path()).env("HOME", user.home.path());
    let ran = common::Ran::from(command.env("TERM", "xterm").output().unwrap());
    assert_eq!(ran.code, Some(128 + 15), "SIGTERM ends it: {ran:?}");
    let saved: Value = serde_json::from_slice(&std::fs::read(user.path("c.json")).unwrap()).unwrap();
    assert!(saved.is_array(), "{saved}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_half_of_a_file() {
    use std::process::Stdio;
    let user = User::new();
    let model = model!(SMOLLM);
    let ids = vec!["7"; 2000].join(",");
    let arguments = ["logits", "-m", &model, "--ids", &ids, "--device", "reference", "-o", "x.safetensors"];
    let child = user.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..600 {
        if !user.files().is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(user.files().len(), 1, "the temporary file is there from the start");
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(user.files().is_empty(), "{:?}", user.files());
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_ends_an_answer_quietly() {
    use std::{io::Read, process::Stdio};
    let user = User::new();
    let model = model!(SMOLLM);
    let mut command = user.command(&["run", "-m", &model, "--ignore-eos", "-q", "Tell me a long story."]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 4]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}
