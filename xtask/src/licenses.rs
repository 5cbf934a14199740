//! The licence of every dependency is among those that `deny.toml` allows.
//!
//! This reads the `license` field of the manifests, as `cargo metadata` reports it. It neither reads licence texts
//! nor knows security advisories: `cargo deny check`, which shares the configuration, does both.

use std::fs;

use crate::workspace::{self, Package};
use crate::{Error, Report, spdx};

/// Checks all packages of `Cargo.lock`, for every platform.
pub(crate) fn run() -> Result<Report, Error> {
    let path = workspace::root().join("deny.toml");
    let allowed = allowed(&fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?)?;
    let packages = workspace::locked_packages()?;
    let summary = format!("{} packages, each under one of: {}", packages.len(), allowed.join(", "));
    Ok(Report { errors: check(&packages, &allowed), warnings: Vec::new(), summary })
}

fn check(packages: &[Package], allowed: &[String]) -> Vec<String> {
    packages.iter().filter_map(|package| judge(package, allowed)).collect()
}

fn judge(package: &Package, allowed: &[String]) -> Option<String> {
    let Package { name, version, license, .. } = package;
    let Some(license) = license else {
        return Some(format!("{name} {version} states no licence"));
    };
    match spdx::permits(license, |term| allowed.iter().any(|it| it == term)) {
        Ok(true) => None,
        Ok(false) => Some(format!("{name} {version}: {license:?} is not permitted by the list in deny.toml")),
        Err(error) => Some(format!("{name} {version}: licence {license:?}: {error}")),
    }
}

/// The strings of `allow` in the section `[licenses]`: the one list that this reads, so no TOML parser is needed.
fn allowed(deny_toml: &str) -> Result<Vec<String>, Error> {
    let code = deny_toml.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let section: String = code
        .skip_while(|line| *line != "[licenses]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .flat_map(|line| [line, "\n"])
        .collect();
    let list = section.split_once("allow = [").ok_or(Error::Deny("[licenses] has no `allow = [`"))?.1;
    let list = list.split_once(']').ok_or(Error::Deny("the list `allow` of [licenses] has no end"))?.0;
    let terms: Vec<String> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    if terms.is_empty() { Err(Error::Deny("the list `allow` of [licenses] is empty")) } else { Ok(terms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read() {
        let text = "[bans]\nallow = [\"x\"]\n[licenses]\nversion = 2\n# why\nallow = [\n  \"MIT\", # most\n  \"ISC\",\n]\n[sources]\n";
        assert_eq!(allowed(text).expect("a valid list"), ["MIT", "ISC"]);
        assert_eq!(allowed("[licenses]\nallow = [\"MIT\"]").expect("a list in one line"), ["MIT"]);
    }

    #[test]
    fn a_list_that_is_not_there_is_an_error() {
        for text in
            ["", "[licenses]\n", "[licenses]\nallow = [\"MIT\"", "[licenses]\nallow = []", "[bans]\nallow = [\"x\"]"]
        {
            assert!(allowed(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_list_of_the_repository_holds_the_licence_of_the_repository() {
        let text = fs::read_to_string(workspace::root().join("deny.toml")).expect("deny.toml");
        let list = allowed(&text).expect("the list");
        assert!(["Apache-2.0", "MIT"].iter().all(|term| list.iter().any(|it| it == term)), "{list:?}");
    }

    #[test]
    fn packages() {
        let list = ["MIT".to_owned()];
        for (license, complaint) in [
            (Some("MIT OR GPL-3.0-only"), ""),
            (Some("GPL-3.0-only"), "not permitted"),
            (Some("MIT AND"), "ends"),
            (None, "states no licence"),
        ] {
            let license = license.map(str::to_owned);
            let package =
                Package { name: "x".into(), version: "1".into(), license, arrows: Vec::new(), roots: Vec::new() };
            let found = judge(&package, &list).unwrap_or_default();
            assert_eq!(found.is_empty(), complaint.is_empty(), "{found}");
            assert!(found.contains(complaint), "{found}");
        }
    }
}
