//! Which files of a repository make one model. Works on names alone, so the hub's listing and a directory on disk go
//! through the same rules: `org/repo:Q8_0` names the same file before and after it was pulled.

use crate::StoreError;
use crate::names::split_part;
use std::collections::BTreeMap;

/// Quantisations taken when none is asked for, best first.
const DEFAULT_QUANTS: [&str; 2] = ["Q4_K_M", "Q4_0"];

/// A GGUF model: one file, or the parts of a split one in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GgufModel {
    /// File names as listed; never empty.
    pub(crate) files: Vec<String>,
    /// Parts that the names promise: 1 unless split.
    total: u32,
}

impl GgufModel {
    /// The file to open: the loader finds the other parts from it.
    pub(crate) fn first(&self) -> &str {
        &self.files[0]
    }

    /// The files, if no part is missing.
    pub(crate) fn complete(&self) -> Result<&[String], StoreError> {
        if usize::try_from(self.total) == Ok(self.files.len()) {
            return Ok(&self.files);
        }
        Err(StoreError::MissingParts { name: self.first().into(), present: self.files.len(), total: self.total })
    }
}

/// Groups the GGUF files among `names` into models, sorted by name.
pub(crate) fn gguf_models(names: &[String]) -> Vec<GgufModel> {
    // The key of a part keeps the total, since two splits of one model may lie side by side.
    let mut groups: BTreeMap<(&str, u32), BTreeMap<u32, &String>> = BTreeMap::new();
    for name in names.iter().filter(|n| n.ends_with(".gguf")) {
        let (prefix, index, total) = split_part(name).unwrap_or((name, 1, 1));
        groups.entry((prefix, total)).or_default().insert(index, name);
    }
    let models = groups.into_iter().map(|((_, total), parts)| {
        let files = parts.into_values().cloned().collect();
        GgufModel { files, total }
    });
    models.collect()
}

/// Picks the GGUF model that `file` (a file name or a quantisation) means among `names`, or the default one. `None`
/// when there is no GGUF model at all, or when `file` names none of them.
pub(crate) fn choose_gguf(repo: &str, names: &[String], file: Option<&str>) -> Result<Option<GgufModel>, StoreError> {
    let models = gguf_models(names);
    let Some(file) = file else {
        let models: Vec<GgufModel> = models.into_iter().filter(|m| !is_companion(m.first())).collect();
        for quant in DEFAULT_QUANTS {
            if let Some(model) = with_quant(repo, &models, quant)? {
                return Ok(Some(model));
            }
        }
        return only(repo, models);
    };
    if let Some(model) = models.iter().find(|m| m.files.iter().any(|f| f == file)) {
        return Ok(Some(model.clone()));
    }
    with_quant(repo, &models, file)
}

/// The one model, if there is one; an error if there are several.
fn only(repo: &str, mut models: Vec<GgufModel>) -> Result<Option<GgufModel>, StoreError> {
    if models.len() > 1 {
        return Err(StoreError::Ambiguous { repo: repo.into(), choices: first_names(&models) });
    }
    Ok(models.pop())
}

fn with_quant(repo: &str, models: &[GgufModel], quant: &str) -> Result<Option<GgufModel>, StoreError> {
    only(repo, models.iter().filter(|m| has_quant(m.first(), quant)).cloned().collect())
}

fn first_names(models: &[GgufModel]) -> Vec<String> {
    models.iter().map(|m| m.first().to_string()).collect()
}

/// Whether a file name carries `quant` as a word of its own: `Q4_K` is not in `m-Q4_K_M.gguf`, nor `Q4_NL` in
/// `m-IQ4_NL.gguf`. Case is ignored.
fn has_quant(name: &str, quant: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    let quant = quant.to_ascii_lowercase();
    base.match_indices(&quant).any(|(at, _)| {
        let before = base[..at].chars().next_back();
        let after = base[at + quant.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// GGUF files that lie beside a model and are none: vision projectors and importance matrices.
fn is_companion(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    base.starts_with("mmproj") || base.starts_with("imatrix")
}

/// Picks what to fetch from the repository `repo` that lists `names`, in the order to fetch it.
pub(crate) fn choose(repo: &str, names: &[String], file: Option<&str>) -> Result<Vec<String>, StoreError> {
    if let Some(model) = choose_gguf(repo, names, file)? {
        return Ok(model.complete()?.to_vec());
    }
    if let Some(file) = file {
        if names.iter().any(|n| n == file) {
            return Ok(vec![file.to_string()]);
        }
        let mut choices = first_names(&gguf_models(names));
        if choices.is_empty() {
            choices = names.iter().filter(|n| n.ends_with(".safetensors")).cloned().collect();
        }
        return Err(StoreError::NoSuchFile { repo: repo.into(), file: file.into(), choices });
    }
    hf_directory(names).ok_or_else(|| StoreError::NoModelFiles { repo: repo.into() })
}

/// The files of a Hugging Face model directory: small ones, then weights, and `config.json` last, so that a directory
/// that holds it is whole.
fn hf_directory(names: &[String]) -> Option<Vec<String>> {
    let root: Vec<&String> = names.iter().filter(|n| !n.contains('/')).collect();
    let is_weights = |n: &str| n.ends_with(".safetensors");
    // Some repositories hold the same weights a second time in the layout of their authors.
    let has_model = root.iter().any(|n| is_weights(n) && n.starts_with("model"));
    let weights = root.iter().filter(|n| is_weights(n) && !(has_model && n.starts_with("consolidated")));
    let weights: Vec<String> = weights.map(|n| n.to_string()).collect();
    if weights.is_empty() || !root.iter().any(|n| *n == "config.json") {
        return None;
    }
    let mut files: Vec<String> = root.iter().filter(|n| is_small_part(n)).map(|n| n.to_string()).collect();
    files.extend(weights);
    files.push("config.json".into());
    Some(files)
}

/// What a Hugging Face model directory needs besides its configuration and weights.
fn is_small_part(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        "preprocessor_config.json",
        "processor_config.json",
    ];
    let tokenizer = name.starts_with("tokenizer") && [".json", ".model"].iter().any(|e| name.ends_with(e));
    tokenizer || name.ends_with(".safetensors.index.json") || NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| n.to_string()).collect()
    }

    #[test]
    fn gguf_choice() {
        let many = names(&["README.md", "m-Q2_K.gguf", "m-Q4_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf"]);
        let q4_0 = names(&["m-f16.gguf", "m.q4_0.gguf", "mmproj-m-f16.gguf"]);
        let one = names(&["m.gguf", "mmproj-f16.gguf", "imatrix_x.gguf", "config.json"]);
        let split = names(&["d/m-Q8_0-00002-of-00002.gguf", "d/m-Q8_0-00001-of-00002.gguf", "m-Q2_K.gguf"]);
        for (list, file, want) in [
            (&many, None, &["m-Q4_K_M.gguf"][..]),
            (&many, Some("Q8_0"), &["m-Q8_0.gguf"]),
            (&many, Some("q8_0"), &["m-Q8_0.gguf"]),
            (&many, Some("m-Q2_K.gguf"), &["m-Q2_K.gguf"]),
            (&many, Some("README.md"), &["README.md"]),
            (&q4_0, None, &["m.q4_0.gguf"]),
            (&q4_0, Some("mmproj-m-f16.gguf"), &["mmproj-m-f16.gguf"]),
            (&one, None, &["m.gguf"]),
            (&split, Some("Q8_0"), &["d/m-Q8_0-00001-of-00002.gguf", "d/m-Q8_0-00002-of-00002.gguf"]),
            (
                &split,
                Some("d/m-Q8_0-00002-of-00002.gguf"),
                &["d/m-Q8_0-00001-of-00002.gguf", "d/m-Q8_0-00002-of-00002.gguf"],
            ),
        ] {
            assert_eq!(choose("a/b", list, file).expect("chosen"), want, "{file:?} of {list:?}");
        }
    }

    #[test]
    fn refused_choices() {
        let none = names(&["README.md", "pytorch_model.bin"]);
        let two = names(&["m-Q5_K_M.gguf", "m-Q8_0.gguf"]);
        let twice = names(&["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf"]);
        let torn = names(&["m-Q4_0-00001-of-00003.gguf", "m-Q4_0-00003-of-00003.gguf"]);
        let error = |list: &[String], file| choose("a/b", list, file).expect_err("refused");
        assert!(matches!(error(&none, None), StoreError::NoModelFiles { .. }));
        assert!(matches!(error(&two, None), StoreError::Ambiguous { choices, .. } if choices == two));
        assert!(matches!(error(&twice, None), StoreError::Ambiguous { .. }));
        assert!(matches!(error(&torn, None), StoreError::MissingParts { present: 2, total: 3, .. }));
        assert!(matches!(error(&two, Some("Q6_K")), StoreError::NoSuchFile { choices, .. } if choices == two));
        // A tag is a whole word.
        assert!(matches!(error(&twice, Some("Q4_K")), StoreError::NoSuchFile { .. }));
    }

    #[test]
    fn safetensors_choice() {
        let list = names(&[
            ".gitattributes",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "chat_template.jinja",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "training_args.bin",
        ]);
        let want = [
            "chat_template.jinja",
            "generation_config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "config.json",
        ];
        assert_eq!(choose("a/b", &list, None).expect("chosen"), want);
    }
}
