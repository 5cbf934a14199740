//! The model list: `models.json` of the repository, built into the program.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The same file that `./quickstart` reads, so that the two cannot disagree.
const MODELS_JSON: &str = include_str!("../../../models.json");

/// A model that `./quickstart NAME` fetches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownModel {
    /// What a user types, such as `smollm2-135m`.
    pub name: String,
    /// One line about the model and its licence.
    pub what: String,
    /// File name inside the model directory.
    pub file: String,
    /// Size of that file in bytes.
    pub bytes: u64,
    /// SHA-256 of that file in hexadecimal.
    pub sha256: String,
}

#[derive(Deserialize)]
struct Row {
    what: String,
    file: String,
    bytes: u64,
    sha256: String,
}

/// The models of `models.json`, by name.
pub fn known_models() -> &'static [KnownModel] {
    static MODELS: LazyLock<Vec<KnownModel>> = LazyLock::new(|| parse(MODELS_JSON).unwrap_or_default());
    &MODELS
}

/// Parses the list. The file is part of the program, and a test parses it: a broken one fails there.
fn parse(json: &str) -> Result<Vec<KnownModel>, serde_json::Error> {
    let rows: BTreeMap<String, Row> = serde_json::from_str(json)?;
    let models = rows.into_iter().map(|(name, row)| {
        let Row { what, file, bytes, sha256 } = row;
        KnownModel { name, what, file, bytes, sha256 }
    });
    Ok(models.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    #[test]
    fn the_list_parses_and_its_fields_are_usable() {
        let models = parse(MODELS_JSON).expect("models.json parses");
        assert_eq!(models, known_models());
        assert!(models.iter().any(|m| m.name == "smollm2-135m"));
        for m in &models {
            assert_eq!(names::check_relative(&m.file), Ok(()), "{}", m.name);
            assert!(m.file.ends_with(".gguf") && !m.file.contains('/'), "{}", m.name);
            assert!(names::is_sha256(&m.sha256), "{}", m.name);
            assert!(m.bytes > 0, "{}", m.name);
        }
    }
}
