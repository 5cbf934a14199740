//! Published models, where they are at hand.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

/// A published model, by its file name: from the directory `UNICORN_MODELS`, else from `~/.cache/unicorn/models`.
/// Where it is not there this is `None`, said aloud, and the test that asked passes.
///
/// # Panics
/// Where it is not there and `UNICORN_REQUIRE_MODELS` is set, to anything but `0` or nothing.
pub fn published(file: &str) -> Option<PathBuf> {
    let named = std::env::var_os("UNICORN_MODELS").filter(|value| !value.is_empty()).map(PathBuf::from);
    let of_home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/unicorn/models"));
    find(named.or_else(of_home)?.as_path(), file, is_set(std::env::var_os("UNICORN_REQUIRE_MODELS")))
}

fn is_set(value: Option<OsString>) -> bool {
    value.is_some_and(|value| !value.is_empty() && value != "0")
}

fn find(directory: &Path, file: &str, required: bool) -> Option<PathBuf> {
    let path = directory.join(file);
    if path.is_file() {
        return Some(path);
    }
    assert!(!required, "{} is missing, and UNICORN_REQUIRE_MODELS is set", path.display());
    println!("skipped: {} is not here", path.display());
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_require() {
        for (value, want) in
            [(None, false), (Some(""), false), (Some("0"), false), (Some("1"), true), (Some("yes"), true)]
        {
            assert_eq!(is_set(value.map(OsString::from)), want, "{value:?}");
        }
    }

    #[test]
    fn what_is_there_is_found_and_what_is_not_is_passed_over() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(find(here, "Cargo.toml", true), Some(here.join("Cargo.toml")));
        assert_eq!(find(here, "absent.gguf", false), None);
    }

    #[test]
    #[should_panic(expected = "absent.gguf is missing")]
    fn what_is_required_and_absent_fails() {
        find(Path::new(env!("CARGO_MANIFEST_DIR")), "absent.gguf", true);
    }
}
