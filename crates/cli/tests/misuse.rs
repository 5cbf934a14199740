//! Help, wrong flags, the config file, completions and manual pages: what needs no model.

mod common;

use common::User;

const COMMANDS: [&str; 20] = [
    "quantize",
    "imatrix",
    "compare",
    "run",
    "chat",
    "serve",
    "inspect",
    "plan",
    "bench",
    "devices",
    "tune",
    "pull",
    "list",
    "rm",
    "tokenize",
    "template",
    "perplexity",
    "logits",
    "completions",
    "man",
];

#[test]
fn every_command_has_help_with_examples() {
    let user = User::new();
    let help = user.run(&["--help"]);
    for command in COMMANDS {
        assert!(help.ok().contains(&format!("\n  {command} ")), "{command} is not in --help");
        let text = user.run(&[command, "--help"]).ok().to_owned();
        assert!(text.contains(&format!("Usage: unicorn {command}")), "{text}");
        assert!(text.contains("Examples:\n"), "{command} has no examples");
    }
    assert!(user.run(&["--version"]).ok().starts_with("unicorn "));
    let bare = user.run::<&str>(&[]);
    assert_eq!(bare.code, Some(2));
    assert!(bare.err.contains("Usage: unicorn"), "{bare:?}");
}

#[test]
fn wrong_arguments_are_misuse() {
    let user = User::new();
    for (arguments, word) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["run", "--frob"], "--frob"),
        (&["run", "--temperature", "hot", "x"], "--temperature"),
        (&["run", "--temperature", "-1", "x"], "temperature"),
        (&["run", "--top-p", "1.5", "x"], "top_p"),
        (&["run", "--threads", "0", "x"], "--threads"),
        (&["run", "--ctx", "0", "x"], "--ctx"),
        (&["bench", "--chunk", "0"], "--chunk"),
        (&["run", "--place", "brain=cpu", "x"], "feed-forward"),
        (&["run", "--logit-bias", "seven=1", "x"], "seven"),
        (&["run", "--cpu-memory", "8 elephants", "x"], "elephants"),
        (&["run", "--arithmetic", "f64", "x"], "f32"),
        (&["run", "--prompt", "a", "b"], "--prompt"),
        (&["run", "--raw", "--system", "a", "b"], "--system"),
        (&["run"], "no prompt"),
        (&["run", "x"], "--model"),
        (&["chat"], "--model"),
        (&["chat", "--min-p", "2"], "min_p"),
        (&["inspect"], "--model"),
        (&["logits", "--ids", "1,x", "--output", "y"], "--ids"),
        (&["logits", "--ids", "1"], "--output"),
        (&["perplexity"], "--file"),
        (&["perplexity", "--file", "x", "--window", "1"], "--window"),
        (&["bench", "-p", "0", "-n", "0"], "-p"),
        (&["bench", "-r", "0"], "-r"),
        (&["bench", "-p", "128,x"], "-p"),
        (&["bench", "-d", "-1"], "-1"),
        (&["bench", "-b", "1,0"], "at least 1"),
        (&["bench", "-d", "4096", "--ctx", "4096"], "4608"),
        (&["bench", "-b", "8", "--chunk", "4"], "--chunk 4"),
        (&["bench", "--format", "xml"], "csv"),
        (&["bench", "--layers", "4"], "--shape"),
        (&["bench", "--shape", "gemma3-27b"], "gemma3-4b:q4_0"),
        (&["bench", "--shape", "gemma9-1b:q4_0"], "qwen2.5-72b"),
        (&["bench", "--shape", "gemma3-1b:q9"], "iq4_xs"),
        (&["bench", "--shape", "gemma3-1b:q4_0", "--layers", "27"], "1 to 26"),
        (&["bench", "--shape", "gemma3-1b:q4_0", "-d", "1000000"], "-p, -n and -d"),
        (&["bench", "--shape", "gemma3-1b:q4_0", "-m", "x"], "--model"),
        (&["template", "--messages", "-", "--tools", "-"], "--tools"),
        (&["pull", "nonsense"], "org/repo"),
        (&["pull", "smollm2-135m"], "./quickstart smollm2-135m"),
        (&["rm", "../../etc", "--yes"], "../../etc"),
        (&["completions", "cmd.exe"], "cmd.exe"),
    ] {
        let ran = user.run(arguments);
        ran.fails(2, &[word]);
        assert_eq!(ran.out, "", "{arguments:?}");
    }
}

#[test]
fn a_missing_model_is_named_with_what_to_do() {
    let user = User::new();
    user.run(&["run", "-m", "no-such", "x"]).fails(2, &["no-such", "unicorn pull"]);
    user.run(&["run", "-m", "./no-such.gguf", "x"]).fails(2, &["no-such.gguf"]);
    user.run(&["run", "-m", "smollm2-135m", "x"]).fails(2, &["./quickstart smollm2-135m"]);
    user.run(&["inspect", "org/repo"]).fails(2, &["unicorn pull org/repo"]);
    if cfg!(unix) {
        user.run(&["run", "-m", "/dev/null", "x"]).fails(2, &["/dev/null", "not a regular file"]);
    }
    let home = user.home.path().to_str().unwrap();
    user.run(&["inspect", home]).fails(2, &["config.json"]);
}

#[test]
fn the_config_file_gives_defaults_and_is_checked() {
    let user = User::new();
    let config = user.write(".config/unicorn/config.toml", "model = 'from-config'\n");
    user.run(&["run", "x"]).fails(2, &["from-config"]);
    user.run(&["run", "-m", "typed", "x"]).fails(2, &["typed"]);
    // Named files take the place of the usual one; an empty name is none.
    let other = user.write("other.toml", "[run]\nmodel = 'from-other'\n");
    let other = other.to_str().unwrap();
    user.run(&["run", "x", "--config", other]).fails(2, &["from-other"]);
    let mut command = user.command(&["run", "x"]);
    common::Ran::from(command.env("UNICORN_CONFIG", other).output().unwrap()).fails(2, &["from-other"]);
    common::Ran::from(command.env("UNICORN_CONFIG", "").output().unwrap()).fails(2, &["--model"]);

    for (text, words) in [
        ("modell = 'x'", &["config.toml", "modell"][..]),
        ("[run]\nfrob = 1", &["config.toml", "frob", "[run]"]),
        ("[walk]\nthreads = 1", &["config.toml", "[walk]"]),
        ("threads = 'many'", &["config.toml", "--threads", "many"]),
        ("[run]\nraw = 'perhaps'", &["config.toml", "--raw", "perhaps"]),
        ("top-k = -1", &["config.toml", "--top-k"]),
        ("a = \nb = 1", &["config.toml", "line 1"]),
        ("model = 1979-05-27", &["config.toml", "model"]),
    ] {
        std::fs::write(&config, text).unwrap();
        user.run(&["run", "x"]).fails(2, words);
    }
    // What is typed wrongly is not the file's fault.
    std::fs::write(&config, "threads = 2").unwrap();
    for arguments in [&["run", "--frob"][..], &["perplexity"], &["frobnicate"], &["run", "--top-k", "x"]] {
        let ran = user.run(arguments);
        ran.fails(2, &[]);
        assert!(!ran.err.contains("config.toml"), "{ran:?}");
    }
    assert!(user.run(&["run", "--help"]).ok().contains("Usage:"));
    std::fs::write(&config, b"\xff").unwrap();
    user.run(&["list"]).fails(1, &["config.toml"]);
    user.run(&["list", "--config", "absent.toml"]).fails(1, &["absent.toml"]);
}

#[test]
fn what_a_command_requires_may_stand_in_the_config_file() {
    let user = User::new();
    let model = common::fixture("qwen2");
    let config = format!(
        "model = {:?}\n[perplexity]\nfile = 'absent.txt'\n[template]\nmessages = 'absent.json'\n\
         [logits]\nids = [1, 2]\noutput = 'x.safetensors'\n",
        model.to_str().unwrap()
    );
    let config = user.write("c.toml", config);
    let config = config.to_str().unwrap();
    user.run(&["perplexity", "--config", config]).fails(1, &["absent.txt"]);
    user.run(&["--config", config, "template"]).fails(1, &["absent.json"]);
    let scored = user.run(&["logits", "--config", config]);
    scored.ok();
    assert!(scored.err.contains("[2, 320]") && user.path("x.safetensors").exists(), "{scored:?}");
    // The file gives one of two.
    let half = user.write("half.toml", "[logits]\nids = [1, 2]\n");
    user.run(&["logits", "--config", half.to_str().unwrap()]).fails(2, &["--output"]);
}

#[test]
fn completions_and_manual_pages_come_from_the_same_table() {
    let user = User::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = user.run(&["completions", shell]).ok().to_owned();
        for word in ["perplexity", "repetition-penalty", "cpu-memory"] {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
    }
    assert!(user.run(&["man"]).ok().contains(".TH unicorn"));
    let dir = user.path("man/man1");
    user.run(&["man", "--dir", dir.to_str().unwrap()]).ok();
    for command in COMMANDS {
        let page = std::fs::read_to_string(dir.join(format!("unicorn-{command}.1"))).unwrap();
        assert!(page.contains(&format!("unicorn\\-{command}")), "{command}: {page}");
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), COMMANDS.len() + 1);
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_error() {
    let user = User::new();
    for arguments in [&["--help"][..], &["completions", "bash"], &["man"]] {
        let mut command = user.command(arguments);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}
