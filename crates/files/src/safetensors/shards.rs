//! The files of a directory that together are a model.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::SafeTensors;
use crate::read::{PartName, read_text_if_there};
use crate::{FileError, Problem, error::shown};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const EXTENSION: &str = ".safetensors";
/// The index of a model with 100 000 tensors has some ten million bytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;

pub(super) fn open_dir(dir: &Path) -> Result<SafeTensors, FileError> {
    if dir.join(SINGLE).exists() {
        return SafeTensors::open(&dir.join(SINGLE));
    }
    let path = dir.join(INDEX);
    match read_text_if_there(&path, MAX_INDEX_BYTES)? {
        Some(json) => {
            let index = Index::parse(&json).map_err(|problem| FileError::new(path.display(), problem))?;
            open_indexed(dir, &path, index)
        }
        None => SafeTensors::open_all(all_files(dir)?, &dir.display().to_string()),
    }
}

/// Which shard holds which tensor.
#[derive(serde::Deserialize)]
pub(super) struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    pub(super) fn parse(json: &str) -> Result<Index, Problem> {
        let index: Index = serde_json::from_str(json).map_err(Problem::json)?;
        match index.weight_map.values().find(|shard| !is_plain_name(shard)) {
            Some(shard) => Err(Problem::ShardName { shard: shown(shard) }),
            None => Ok(index),
        }
    }
}

/// One component, as this and other systems see it: neither an absolute path nor `..` nor a drive.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let single = matches!(components.next(), Some(Component::Normal(_))) && components.next().is_none();
    single && name.ends_with(EXTENSION) && !name.contains(['/', '\\', ':', '\0'])
}

fn open_indexed(dir: &Path, index_path: &Path, index: Index) -> Result<SafeTensors, FileError> {
    let fail = |problem| FileError::new(index_path.display(), problem);
    let mut shards: Vec<&str> = index.weight_map.values().map(String::as_str).collect();
    shards.sort_unstable();
    shards.dedup();
    if shards.is_empty() {
        return Err(fail(Problem::NoWeights));
    }
    if let Some(shard) = shards.iter().find(|shard| !dir.join(shard).exists()) {
        return Err(fail(Problem::ShardMissing { shard: shown(shard) }));
    }
    let opened =
        SafeTensors::open_all(shards.iter().map(|shard| dir.join(shard)).collect(), &dir.display().to_string())?;
    for (tensor, shard) in &index.weight_map {
        if opened.part_of(tensor) != Some(dir.join(shard).as_path()) {
            return Err(fail(Problem::ShardTensor { tensor: shown(tensor), shard: shown(shard) }));
        }
    }
    Ok(opened)
}

/// Every safetensors file of a directory, by name. Where names count parts, all must be there.
fn all_files(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let io = |err| FileError::new(dir.display(), Problem::Io(err));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        // A name that is not UTF-8 is nobody's model.
        if let Ok(name) = entry.map_err(io)?.file_name().into_string()
            && name.ends_with(EXTENSION)
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    if names.is_empty() {
        return Err(FileError::new(dir.display(), Problem::NoWeights));
    }
    for name in &names {
        let Some(part) = PartName::parse(name, EXTENSION) else { continue };
        if let Some(missing) = (1..=part.parts).find(|&i| names.binary_search(&part.sibling(i, EXTENSION)).is_err()) {
            let path = dir.join(part.sibling(missing, EXTENSION));
            return Err(FileError::new(path.display(), Problem::PartMissing { part: missing, parts: part.parts }));
        }
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::is_plain_name;

    #[test]
    fn names_stay_in_the_directory() {
        for good in ["model-00001-of-00002.safetensors", "a b.safetensors", "..a.safetensors"] {
            assert!(is_plain_name(good), "{good}");
        }
        let bad = ["", ".", "..", "../m.safetensors", "/m.safetensors", "a/m.safetensors", "a\\m.safetensors"];
        for bad in bad.into_iter().chain(["C:m.safetensors", "m.bin", "m.safetensors/", "./m.safetensors"]) {
            assert!(!is_plain_name(bad), "{bad}");
        }
    }
}
