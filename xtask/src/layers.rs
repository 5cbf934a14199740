//! Dependencies between the crates of this repository point down.
//!
//! ```text
//! 5  cli
//! 4  server
//! 3  engine
//! 2  cpu  vulkan  xdna  models  quantize
//! 1  files  text  graph  store
//! 0  tensor
//! ```
//!
//! A crate depends on crates of strictly lower floors. So a model knows no device and a device no model, for they
//! share a floor. `server` and `cli` see the engine and nothing below it, but for `store`, which knows names and no
//! tensor; `cli` starts the server, so it stands above it. Tests may use `testkit`; nothing that ships may.

use crate::workspace::{self, Package};
use crate::{Error, Report};

/// Where a crate stands.
#[derive(Clone, Copy)]
enum Place {
    /// On a floor: it depends on what is strictly lower.
    Floor(u8),
    /// On a floor, and it depends on these crates only.
    Only(u8, &'static [&'static str]),
    /// Beside the house, for tests: it depends on what is below the given floor, and only dev-dependencies lead to it.
    Tests { below: u8 },
    /// Outside the house: no dependency leads to it, and it depends on none of ours.
    Outside,
}

/// Every crate of the workspace has a line here.
const PLACES: &[(&str, Place)] = &[
    ("tensor", Place::Floor(0)),
    ("files", Place::Floor(1)),
    ("text", Place::Floor(1)),
    ("graph", Place::Floor(1)),
    ("store", Place::Floor(1)),
    ("cpu", Place::Floor(2)),
    ("vulkan", Place::Floor(2)),
    ("xdna", Place::Floor(2)),
    ("models", Place::Floor(2)),
    ("quantize", Place::Floor(2)),
    ("engine", Place::Floor(3)),
    ("server", Place::Only(4, &["engine", "store"])),
    ("cli", Place::Only(5, &["engine", "server", "store"])),
    ("testkit", Place::Tests { below: 2 }),
    ("xtask", Place::Outside),
];

/// Checks the workspace.
pub(crate) fn run() -> Result<Report, Error> {
    let packages = workspace::members()?;
    let arrows: usize = packages.iter().map(|package| package.arrows.len()).sum();
    let summary = format!("{} crates, {arrows} dependencies between them, all point down", packages.len());
    Ok(Report { errors: check(&packages), warnings: Vec::new(), summary })
}

fn place(name: &str) -> Option<Place> {
    PLACES.iter().find(|(known, _)| *known == name).map(|(_, place)| *place)
}

/// One line for each arrow that points wrong and each crate that is not in the table.
fn check(packages: &[Package]) -> Vec<String> {
    let mut errors = Vec::new();
    for package in packages {
        let Some(from) = place(&package.name) else {
            errors.push(unknown(&package.name));
            continue;
        };
        for arrow in &package.arrows {
            let wrong = match place(&arrow.to) {
                Some(to) => refuse(from, &arrow.to, to, arrow.dev),
                // Reported as a package of its own, where it is one.
                None if packages.iter().any(|package| package.name == arrow.to) => None,
                None => Some(unknown(&arrow.to)),
            };
            if let Some(reason) = wrong {
                let kind = if arrow.dev { " (dev)" } else { "" };
                errors.push(format!("{} -> {}{kind}: {reason}", package.name, arrow.to));
            }
        }
    }
    errors
}

fn unknown(name: &str) -> String {
    format!("crate {name} is not in the table: add its floor to PLACES in xtask/src/layers.rs")
}

/// Why a crate at `from` may not depend on the crate `name` at `to`.
fn refuse(from: Place, name: &str, to: Place, dev: bool) -> Option<String> {
    let target_floor = match to {
        Place::Floor(floor) | Place::Only(floor, _) => floor,
        Place::Tests { .. } if dev => return None,
        Place::Tests { .. } => return Some("it serves tests: make it a dev-dependency".to_owned()),
        Place::Outside => return Some("it is a tool of the repository, not a part of the program".to_owned()),
    };
    match from {
        Place::Floor(floor) | Place::Only(floor, _) if target_floor >= floor => {
            Some(format!("floor {floor} may only use lower floors, and this is floor {target_floor}"))
        }
        Place::Only(_, allowed) if !allowed.contains(&name) => Some(format!("it may only use {}", allowed.join(", "))),
        Place::Tests { below } if target_floor >= below => {
            Some(format!("it may only use floors below {below}, and this is floor {target_floor}"))
        }
        Place::Outside => Some("a tool of the repository uses no crate of the program".to_owned()),
        Place::Floor(_) | Place::Only(..) | Place::Tests { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A dependency: name and kind.
    type Dependency<'a> = (&'a str, Option<&'a str>);

    /// The findings on a workspace of crates, each with its dependencies.
    fn findings(crates: &[(&str, &[Dependency])]) -> Vec<String> {
        let packages: Vec<_> = crates
            .iter()
            .map(|(name, dependencies)| {
                let ours = dependencies.iter().map(|(to, kind)| json!({"name": to, "kind": kind, "path": "x"}));
                let outside = [json!({"name": "serde", "kind": null, "source": "registry+x"})];
                let all: Vec<_> = ours.chain(outside).collect();
                json!({"name": name, "version": "0.1.0", "dependencies": all, "targets": []})
            })
            .collect();
        check(&workspace::parse(&json!({ "packages": packages }).to_string()).expect("a valid sample"))
    }

    #[test]
    fn arrows() {
        // from, to, kind, and a part of the complaint, empty where the arrow is right
        let table: &[(&str, &str, Option<&str>, &str)] = &[
            ("files", "tensor", None, ""),
            ("cpu", "graph", None, ""),
            ("engine", "models", None, ""),
            ("engine", "store", None, ""),
            ("cli", "engine", None, ""),
            ("cli", "store", None, ""),
            ("files", "testkit", Some("dev"), ""),
            ("cli", "testkit", Some("dev"), ""),
            ("testkit", "files", None, ""),
            ("tensor", "files", None, "floor 0 may only use lower floors, and this is floor 1"),
            ("models", "cpu", None, "floor 2"),
            ("cpu", "models", None, "floor 2"),
            ("models", "vulkan", Some("dev"), "floor 2"),
            ("text", "files", None, "floor 1"),
            ("graph", "engine", Some("build"), "floor 3"),
            ("engine", "cli", None, "floor 5"),
            ("server", "cli", None, "floor 5"),
            ("cli", "tensor", None, "may only use engine, server, store"),
            ("cli", "cpu", Some("dev"), "may only use engine, server, store"),
            ("server", "graph", None, "may only use engine, store"),
            ("files", "testkit", None, "make it a dev-dependency"),
            ("files", "testkit", Some("build"), "make it a dev-dependency"),
            ("testkit", "engine", None, "below 2"),
            ("xtask", "tensor", None, "uses no crate of the program"),
            ("engine", "xtask", Some("dev"), "tool of the repository"),
            ("engine", "gadget", None, "crate gadget is not in the table: add"),
        ];
        for (from, to, kind, complaint) in table {
            let found = findings(&[(from, &[(to, *kind)])]);
            match (complaint.is_empty(), found.as_slice()) {
                (true, []) => {}
                (false, [line]) => {
                    assert!(line.starts_with(&format!("{from} -> {to}")) && line.contains(complaint), "{line}");
                }
                _ => panic!("{from} -> {to} {kind:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_crate_without_a_place_is_named_once() {
        let found = findings(&[("gadget", &[("tensor", None)]), ("engine", &[("gadget", None)])]);
        assert_eq!(found, [unknown("gadget")]);
    }

    #[test]
    fn every_wrong_arrow_is_reported() {
        let found = findings(&[("tensor", &[("graph", None), ("cpu", None)]), ("models", &[("xdna", None)])]);
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn metadata_of_another_shape_is_an_error() {
        for sample in [
            "",
            "[]",
            r#"{"packages": 1}"#,
            r#"{"packages": [{}]}"#,
            r#"{"packages": [{"name": "cpu", "version": "1", "targets": []}]}"#,
            r#"{"packages": [{"name": "cpu", "version": "1", "targets": [{}], "dependencies": []}]}"#,
            r#"{"packages": [{"name": "cpu", "version": "1", "targets": [], "dependencies": [{"path": "x"}]}]}"#,
        ] {
            assert!(workspace::parse(sample).is_err(), "{sample}");
        }
    }
}
