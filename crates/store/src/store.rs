//! The directory of models, and finding a model by name.

use crate::local::Contents;
use crate::names::{Spec, check_relative, near};
use crate::select::{GgufModel, choose_gguf, gguf_models};
use crate::{StoreError, known_models};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The directory of models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    dir: PathBuf,
}

/// Something in the store that a name means.
pub(crate) enum Found {
    /// GGUF files below `base`; the first one is to be opened.
    Gguf { base: PathBuf, model: GgufModel },
    /// A file of another kind.
    File(PathBuf),
    /// A Hugging Face directory.
    Directory(PathBuf),
}

impl Found {
    fn path(&self) -> Result<PathBuf, StoreError> {
        match self {
            Self::Gguf { base, model } => Ok(base.join(&model.complete()?[0])),
            Self::File(path) | Self::Directory(path) => Ok(path.clone()),
        }
    }
}

impl Store {
    /// The user's store: `$UNICORN_HOME/models`, else `$XDG_CACHE_HOME/unicorn/models`, else
    /// `~/.cache/unicorn/models`. The directory need not exist.
    ///
    /// # Errors
    /// [`StoreError::NoHome`] if the environment names none of them.
    pub fn open_default() -> Result<Self, StoreError> {
        default_dir(|name| std::env::var_os(name)).map(|dir| Self { dir }).ok_or(StoreError::NoHome)
    }

    /// The store in `dir`, which need not exist.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Finds the model that `name` means, in this order: an existing GGUF file or Hugging Face directory (one that
    /// holds `config.json`); a name of the model list; a file or a directory inside the store; `org/repo` or
    /// `org/repo:file` that was pulled. Of a split model the first part is returned.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] with the places looked at, the command that would fetch it, and near names;
    /// [`StoreError::NotAModel`], [`StoreError::NotRegular`], [`StoreError::WrongSize`], [`StoreError::MissingParts`]
    /// or [`StoreError::Ambiguous`] for what is there and cannot be used.
    pub fn resolve(&self, name: &str) -> Result<PathBuf, StoreError> {
        let given = Path::new(name);
        // An empty path joined to a name would be that name in the current directory.
        if !name.is_empty() && (given.is_file() || given.join("config.json").is_file()) {
            return Ok(given.to_path_buf());
        }
        if let Some(found) = self.find(name)? {
            return found.path();
        }
        if given.is_dir() {
            return Err(StoreError::NotAModel { path: given.to_path_buf() });
        }
        if given.exists() {
            return Err(StoreError::NotRegular { path: given.to_path_buf() });
        }
        Err(self.not_found(name))
    }

    /// Finds `name` inside the store.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Found>, StoreError> {
        if let Some(known) = known_models().iter().find(|m| m.name == name) {
            let path = self.dir.join(&known.file);
            let Ok(metadata) = fs::metadata(&path) else { return Ok(None) };
            if metadata.len() != known.bytes {
                let (actual, expected) = (metadata.len(), known.bytes);
                return Err(StoreError::WrongSize { name: &known.name, path, actual, expected });
            }
            return Ok(Some(Found::File(path)));
        }
        if !name.contains('/') {
            return Ok(self.find_at_top(name));
        }
        let Ok(spec) = Spec::parse(name) else { return Ok(None) };
        self.find_pulled(&spec)
    }

    /// A file or a Hugging Face directory right in the store's directory.
    fn find_at_top(&self, name: &str) -> Option<Found> {
        check_relative(name).ok()?;
        let path = self.dir.join(name);
        if path.is_dir() {
            return path.join("config.json").is_file().then_some(Found::Directory(path));
        }
        if !path.is_file() {
            return None;
        }
        let model = gguf_models(&self.top_files()).into_iter().find(|m| m.files.iter().any(|f| f == name));
        Some(match model {
            Some(model) => Found::Gguf { base: self.dir.clone(), model },
            None => Found::File(path),
        })
    }

    /// What was pulled from a repository, by the same rules that a pull chooses by.
    fn find_pulled(&self, spec: &Spec) -> Result<Option<Found>, StoreError> {
        let base = self.dir.join(&spec.org).join(&spec.repo);
        let contents = Contents::of(&base);
        if let Some(model) = choose_gguf(&spec.id(), &contents.files, spec.file.as_deref())? {
            return Ok(Some(Found::Gguf { base, model }));
        }
        Ok(match &spec.file {
            Some(file) => contents.files.contains(file).then(|| Found::File(base.join(file))),
            None => contents.is_hf_directory().then_some(Found::Directory(base)),
        })
    }

    /// Names of the files right in the store's directory.
    pub(crate) fn top_files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let files = entries.filter(|e| e.path().is_file()).filter_map(|e| e.file_name().into_string().ok());
        files.filter(|n| !n.starts_with('.')).collect()
    }

    pub(crate) fn not_found(&self, name: &str) -> StoreError {
        let known = known_models().iter().find(|m| m.name == name);
        let spec = Spec::parse(name).ok();
        let dir = &self.dir;
        let (looked, hint) = match (known, &spec) {
            (Some(known), _) => {
                (format!("{:?} is not here yet", dir.join(&known.file)), format!("fetch it with `./quickstart {name}`"))
            }
            (None, Some(spec)) => {
                let place = dir.join(&spec.org).join(&spec.repo);
                let cut = !Contents::of(&place).parts.is_empty();
                let state = if cut { "holds an unfinished download" } else { "does not hold it" };
                (format!("no such path, and {place:?} {state}"), format!("fetch it with `unicorn pull {name}`"))
            }
            (None, None) => (
                format!("no such path, nothing of that name in the model list nor in {dir:?}"),
                "fetch one with `./quickstart NAME` or `unicorn pull org/repo`".to_string(),
            ),
        };
        let suggestions = if known.is_some() { Vec::new() } else { self.suggestions(name) };
        StoreError::NotFound { name: name.into(), looked, hint, suggestions }
    }

    fn suggestions(&self, name: &str) -> Vec<String> {
        let here = self.list().unwrap_or_default();
        let here = here.iter().flat_map(|e| [e.name.as_str(), e.name.split(':').next().unwrap_or_default()]);
        near(name, known_models().iter().map(|m| m.name.as_str()).chain(here))
    }
}

/// The store's directory in the environment that `var` reads.
fn default_dir(var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(home) = path("UNICORN_HOME") {
        return Some(home.join("models"));
    }
    // The XDG base directory specification has relative values ignored.
    let cache = path("XDG_CACHE_HOME").filter(|p| p.is_absolute());
    let cache = cache.or_else(|| path("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("unicorn").join("models"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_follows_the_environment() {
        for (vars, want) in [
            (&[("UNICORN_HOME", "/u"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")][..], Some("/u/models")),
            (&[("UNICORN_HOME", ""), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], Some("/x/unicorn/models")),
            (&[("XDG_CACHE_HOME", "relative"), ("HOME", "/h")], Some("/h/.cache/unicorn/models")),
            (&[("HOME", "/h")], Some("/h/.cache/unicorn/models")),
            (&[], None),
        ] {
            let var = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
            assert_eq!(default_dir(var), want.map(PathBuf::from), "{vars:?}");
        }
    }
}
