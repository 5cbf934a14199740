//! What `cargo metadata` and `git` say about the repository, as types.
//!
//! The format: <https://doc.rust-lang.org/cargo/commands/cargo-metadata.html>.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::error::Error;

/// A package, of ours or from outside.
#[derive(Debug)]
pub(crate) struct Package {
    /// As in its manifest.
    pub(crate) name: String,
    /// As in its manifest.
    pub(crate) version: String,
    /// An SPDX expression, where the manifest has one.
    pub(crate) license: Option<String>,
    /// Its dependencies within this repository; those from outside are left out.
    pub(crate) arrows: Vec<Arrow>,
    /// The root files of its libraries and programs; not those of its tests, examples and build script.
    pub(crate) roots: Vec<PathBuf>,
}

/// A dependency on a package of this repository.
#[derive(Debug)]
pub(crate) struct Arrow {
    /// The name of the package, whatever the manifest renames it to.
    pub(crate) to: String,
    /// Whether only tests, examples and benchmarks have it.
    pub(crate) dev: bool,
}

/// The packages of the workspace.
pub(crate) fn members() -> Result<Vec<Package>, Error> {
    parse(&cargo_metadata(&["--no-deps"])?)
}

/// The packages of the workspace and all that they depend on, on every platform. Fails where `Cargo.lock` is missing
/// or does not fit the manifests.
pub(crate) fn locked_packages() -> Result<Vec<Package>, Error> {
    parse(&cargo_metadata(&["--locked", "--all-features"])?)
}

/// Reads the output of `cargo metadata`.
pub(crate) fn parse(metadata: &str) -> Result<Vec<Package>, Error> {
    let metadata: Value = serde_json::from_str(metadata)?;
    array(&metadata, "packages", "the document")?.iter().map(package).collect()
}

fn package(value: &Value) -> Result<Package, Error> {
    let name = string(value, "name", "a package")?;
    let mut arrows = Vec::new();
    for dependency in array(value, "dependencies", &name)? {
        // Only a dependency by path is within the repository.
        if dependency.get("path").is_some_and(Value::is_string) {
            let dev = dependency.get("kind").and_then(Value::as_str) == Some("dev");
            arrows.push(Arrow { to: string(dependency, "name", &name)?, dev });
        }
    }
    let mut roots = Vec::new();
    for target in array(value, "targets", &name)? {
        let kinds = array(target, "kind", &name)?;
        if !kinds.iter().any(|kind| matches!(kind.as_str(), Some("test" | "example" | "bench" | "custom-build"))) {
            roots.push(PathBuf::from(string(target, "src_path", &name)?));
        }
    }
    let license = value.get("license").and_then(Value::as_str).map(str::to_owned);
    Ok(Package { version: string(value, "version", &name)?, license, arrows, roots, name })
}

fn array<'a>(value: &'a Value, field: &'static str, place: &str) -> Result<&'a [Value], Error> {
    let found = value.get(field).and_then(Value::as_array);
    found.map(Vec::as_slice).ok_or_else(|| Error::Field { place: place.to_owned(), field })
}

fn string(value: &Value, field: &'static str, place: &str) -> Result<String, Error> {
    let found = value.get(field).and_then(Value::as_str);
    found.map(str::to_owned).ok_or_else(|| Error::Field { place: place.to_owned(), field })
}

fn cargo_metadata(arguments: &[&str]) -> Result<String, Error> {
    let mut command = Command::new("cargo");
    command.current_dir(root()).args(["metadata", "--format-version", "1", "--quiet"]).args(arguments);
    output("cargo", command)
}

/// The paths, relative to the root, of the files that git tracks and of those that it would add: a file counts before
/// it is committed. What git ignores is left out, and so is what was deleted.
pub(crate) fn files() -> Result<Vec<PathBuf>, Error> {
    let mut command = Command::new("git");
    command.current_dir(root());
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]);
    let listing = output("git", command)?;
    let paths = listing.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from);
    Ok(paths.filter(|path| root().join(path).symlink_metadata().is_ok_and(|it| it.is_file())).collect())
}

/// The folder of the repository.
pub(crate) fn root() -> PathBuf {
    // Asked at run time where cargo tells: with a target directory shared by two checkouts, the path that was compiled
    // in may be the other one's.
    let told = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest_folder = told.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest_folder.parent().map_or(manifest_folder.clone(), Path::to_path_buf)
}

fn output(program: &'static str, mut command: Command) -> Result<String, Error> {
    let output = command.output().map_err(|source| Error::Start { program, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Failed { command: format!("{command:?}"), stderr })
}
