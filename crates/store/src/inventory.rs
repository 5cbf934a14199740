//! What is in the store, and removing it.

use crate::local::Contents;
use crate::names::{Spec, check_relative};
use crate::part::final_name;
use crate::select::gguf_models;
use crate::store::Found;
use crate::{Store, StoreError, known_models};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One model in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What to give to `--model`, and to [`Store::remove`].
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Where it came from.
    pub source: Source,
    /// Bytes of its files together.
    pub bytes: u64,
    /// When the youngest of its files was written, where the file system says.
    pub modified: Option<SystemTime>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A GGUF file, or a split one.
    Gguf,
    /// A Hugging Face directory.
    HfDirectory,
    /// A download that was cut; pulling it again goes on with it.
    Partial,
}

/// Where an entry came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The model list: fetched by `./quickstart`.
    ModelList,
    /// The repository `org/repo` of the hub.
    Hub(String),
    /// Put into the directory by hand.
    Local,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gguf => "gguf",
            Self::HfDirectory => "hf directory",
            Self::Partial => "partial",
        })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ModelList => f.write_str("model list"),
            Self::Hub(repo) => write!(f, "hub {repo}"),
            Self::Local => f.write_str("local"),
        }
    }
}

impl Store {
    /// The models in the store, sorted by name. A store whose directory does not exist is empty.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the directory exists and cannot be read. What cannot be read below it is left out.
    pub fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let entries = match fs::read_dir(self.dir()) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StoreError::io("read", self.dir(), e)),
        };
        let mut found = self.list_top_files();
        for name in subdirectories(entries) {
            let dir = self.dir().join(&name);
            if dir.join("config.json").is_file() {
                found.push(entry(name, Kind::HfDirectory, Source::Local, &dir, &Contents::of(&dir).files));
                continue;
            }
            for repo in fs::read_dir(&dir).into_iter().flat_map(subdirectories) {
                list_repo(&dir.join(&repo), &format!("{name}/{repo}"), &mut found);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn list_top_files(&self) -> Vec<Entry> {
        let models = gguf_models(&self.top_files()).into_iter().map(|model| {
            let known = known_models().iter().find(|m| m.file == model.first());
            let (name, source) = match known {
                Some(known) => (known.name.clone(), Source::ModelList),
                None => (model.first().to_string(), Source::Local),
            };
            entry(name, Kind::Gguf, source, self.dir(), &model.files)
        });
        models.collect()
    }

    /// Deletes the model `name`, as [`Store::list`] names it, and returns the bytes freed. `org/repo` deletes all that
    /// was pulled from the repository, unfinished downloads included.
    ///
    /// Nothing outside the store is touched: a name is a name of the model list, a file or directory right in the
    /// store, or `org/repo[:file]`; a symbolic link is deleted itself, not what it points to; and a name that leads
    /// through a linked directory is refused.
    ///
    /// # Errors
    /// [`StoreError::BadName`] for a name of another form, [`StoreError::NotFound`] if there is nothing of that name.
    pub fn remove(&self, name: &str) -> Result<u64, StoreError> {
        let bad = |reason| StoreError::BadName { name: name.into(), reason };
        let mut targets: Vec<PathBuf> = Vec::new();
        if let Some(known) = known_models().iter().find(|m| m.name == name) {
            targets.push(self.dir().join(&known.file));
        } else if name.contains('/') {
            let spec = Spec::parse(name).map_err(|_| bad("it is neither org/repo nor org/repo:file"))?;
            targets = self.pulled_targets(&spec)?;
        } else {
            check_relative(name).map_err(bad)?;
            match self.find(name)? {
                Some(Found::Gguf { base, model }) => targets.extend(model.files.iter().map(|f| base.join(f))),
                Some(Found::File(path) | Found::Directory(path)) => targets.push(path),
                // A link to nowhere is nothing to open, yet something to remove.
                None if self.dir().join(name).is_symlink() => targets.push(self.dir().join(name)),
                None => {}
            }
        }
        targets.retain(|t| t.symlink_metadata().is_ok());
        if targets.is_empty() {
            return Err(self.not_found(name));
        }
        for target in &targets {
            self.check_confined(target).map_err(bad)?;
        }
        let mut freed = 0u64;
        for target in &targets {
            freed = freed.saturating_add(remove_path(target).map_err(|e| StoreError::io("remove", target, e))?);
            self.remove_empty_parents(target);
        }
        Ok(freed)
    }

    /// What removing `spec` deletes.
    fn pulled_targets(&self, spec: &Spec) -> Result<Vec<PathBuf>, StoreError> {
        let base = self.dir().join(&spec.org).join(&spec.repo);
        let Some(file) = &spec.file else { return Ok(vec![base]) };
        let contents = Contents::of(&base);
        let mut names = vec![file.clone()];
        if let Some(Found::Gguf { model, .. }) = self.find(&format!("{}:{file}", spec.id()))? {
            names.extend(model.files);
        }
        let parts: Vec<String> = names.iter().flat_map(|n| contents.parts_of(n)).cloned().collect();
        names.extend(parts);
        names.sort();
        names.dedup();
        // Of a name with a file only files: a directory of the same name holds other models.
        let targets = names.iter().map(|n| base.join(n));
        Ok(targets.filter(|target| !target.symlink_metadata().is_ok_and(|m| m.is_dir())).collect())
    }

    /// Whether the directories between the store and `target` are directories, not links that lead elsewhere.
    fn check_confined(&self, target: &Path) -> Result<(), &'static str> {
        let inside = target.strip_prefix(self.dir()).map_err(|_| "it is outside the store")?;
        let mut path = self.dir().to_path_buf();
        for component in inside.parent().into_iter().flat_map(Path::components) {
            path.push(component);
            if !path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                return Err("it leads through a symbolic link");
            }
        }
        Ok(())
    }

    /// Removes the directories that `target` leaves empty, up to the store's own.
    fn remove_empty_parents(&self, target: &Path) {
        for dir in target.ancestors().skip(1).take_while(|d| *d != self.dir()) {
            // Fails on the first that is not empty, which is what ends this.
            if fs::remove_dir(dir).is_err() {
                return;
            }
        }
    }
}

/// Adds what was pulled into `dir` from the repository `id`.
fn list_repo(dir: &Path, id: &str, found: &mut Vec<Entry>) {
    let contents = Contents::of(dir);
    let source = || Source::Hub(id.to_string());
    for model in gguf_models(&contents.files) {
        found.push(entry(format!("{id}:{}", model.first()), Kind::Gguf, source(), dir, &model.files));
    }
    if contents.is_hf_directory() {
        let files: Vec<String> = contents.files.iter().filter(|f| !f.ends_with(".gguf")).cloned().collect();
        found.push(entry(id.to_string(), Kind::HfDirectory, source(), dir, &files));
    }
    for part in &contents.parts {
        let file = final_name(part).unwrap_or(part);
        found.push(entry(format!("{id}:{file}"), Kind::Partial, source(), dir, std::slice::from_ref(part)));
    }
}

fn entry(name: String, kind: Kind, source: Source, dir: &Path, files: &[String]) -> Entry {
    let metadata = || files.iter().filter_map(|f| fs::metadata(dir.join(f)).ok());
    let bytes = metadata().fold(0u64, |sum, m| sum.saturating_add(m.len()));
    Entry { name, kind, source, bytes, modified: metadata().filter_map(|m| m.modified().ok()).max() }
}

fn subdirectories(entries: fs::ReadDir) -> impl Iterator<Item = String> {
    let dirs = entries.flatten().filter(|e| e.path().is_dir()).filter_map(|e| e.file_name().into_string().ok());
    dirs.filter(|n| !n.starts_with('.'))
}

/// Deletes a file, a link or a whole directory, following no link. Returns the bytes of the files deleted.
fn remove_path(path: &Path) -> io::Result<u64> {
    let metadata = path.symlink_metadata()?;
    if metadata.is_dir() {
        let bytes = tree_bytes(path);
        fs::remove_dir_all(path)?;
        return Ok(bytes);
    }
    fs::remove_file(path)?;
    Ok(if metadata.is_file() { metadata.len() } else { 0 })
}

/// Bytes of the regular files below `dir`.
fn tree_bytes(dir: &Path) -> u64 {
    let (mut bytes, mut pending) = (0u64, vec![dir.to_path_buf()]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(m) if m.is_dir() => pending.push(entry.path()),
                Ok(m) if m.is_file() => bytes = bytes.saturating_add(m.len()),
                _ => {}
            }
        }
    }
    bytes
}
