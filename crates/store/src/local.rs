//! What lies in one repository directory of the store.

use crate::names::MAX_DEPTH;
use crate::part::final_name;
use std::fs;
use std::path::Path;

/// Bound on the files of one repository directory that are looked at.
const MAX_FILES: usize = 10_000;

/// Files of a directory, by relative name with `/`, sorted.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Finished files.
    pub(crate) files: Vec<String>,
    /// `.part` files.
    pub(crate) parts: Vec<String>,
}

impl Contents {
    /// Looks into `dir`. What cannot be read, hidden files, and directories behind a symbolic link are left out.
    pub(crate) fn of(dir: &Path) -> Self {
        let mut contents = Self::default();
        contents.walk(dir, "", 0);
        contents.files.sort();
        contents.parts.sort();
        contents
    }

    fn walk(&mut self, dir: &Path, prefix: &str, depth: usize) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str().filter(|n| !n.starts_with('.')) else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            if self.files.len() + self.parts.len() >= MAX_FILES {
                return;
            }
            let relative = format!("{prefix}{name}");
            if kind.is_dir() && depth + 1 < MAX_DEPTH {
                self.walk(&entry.path(), &format!("{relative}/"), depth + 1);
            } else if !kind.is_dir() && entry.path().is_file() {
                let list = if final_name(name).is_some() { &mut self.parts } else { &mut self.files };
                list.push(relative);
            }
        }
    }

    /// Whether the files make a Hugging Face model directory.
    pub(crate) fn is_hf_directory(&self) -> bool {
        let has_weights = self.files.iter().any(|f| f.ends_with(".safetensors") && !f.contains('/'));
        has_weights && self.files.iter().any(|f| f == "config.json")
    }

    /// The unfinished downloads of the file `name`.
    pub(crate) fn parts_of(&self, name: &str) -> impl Iterator<Item = &String> {
        self.parts.iter().filter(move |part| final_name(part) == Some(name))
    }
}
