# `just` lists these. Every check at once is `./test`; `./quickstart` goes from a clone to an answer.

_default:
    @just --list --unsorted

# the program, in target/release
build:
    cargo build --release -p cli

# the program with arguments: just unicorn run --model smollm2-135m --prompt Hello
[positional-arguments]
unicorn *arguments: build
    @"${CARGO_TARGET_DIR:-target}/release/unicorn" "$@"

# what fails in seconds, before a commit
check:
    ./test scripts lock format layers repository licenses clippy

# tests of the crates named, or of all: just test text graph
test *crates:
    cargo test {{ if crates == "" { "--workspace" } else { "-p " + replace(crates, " ", " -p ") } }}

# the published models against their references; fetches them when missing
goldens:
    ./test models real_models

# formats everything
format:
    cargo fmt --all
    cargo fmt --manifest-path fuzz/Cargo.toml

# the documentation of our crates, in the browser
doc:
    cargo doc --workspace --no-deps --open

# one fuzz target without end; needs a nightly compiler and cargo-fuzz: just fuzz gguf
fuzz target:
    cargo +nightly fuzz run {{ target }} --features libfuzzer

# licences, advisories and duplicates of the dependencies; needs cargo-deny
deny:
    cargo deny check
