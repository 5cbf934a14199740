//! A pull: from `org/repo[:file]` to files in the store.

use crate::download::fetch;
use crate::hub::{Hub, Remote};
use crate::names::{Spec, check_relative};
use crate::part::is_current;
use crate::select::choose;
use crate::{Store, StoreError};
use std::fs;
use std::path::{Path, PathBuf};

/// Told how a pull goes on. `()` is one that does not care.
pub trait Progress {
    /// The file `file` of `bytes` bytes is begun. Called a second time for the same file if its bytes have to be
    /// fetched again from the first: the count of it then starts anew.
    fn start(&mut self, file: &str, bytes: u64);
    /// `bytes` more of the current file are on disk. Bytes of an earlier, cut pull are reported here too, at once.
    fn advance(&mut self, bytes: u64);
    /// The current file is whole, checked and under its final name.
    fn finish(&mut self);
}

impl Progress for () {
    fn start(&mut self, _file: &str, _bytes: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn finish(&mut self) {}
}

/// What a pull brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// What to open: a file (the first of a split model), or a Hugging Face directory.
    pub path: PathBuf,
    /// The files, by their names in the repository.
    pub files: Vec<String>,
    /// Bytes of all files together.
    pub total_bytes: u64,
    /// Bytes that came over the network; less than `total_bytes` when some were here already.
    pub received_bytes: u64,
}

impl Store {
    /// Fetches `org/repo` or `org/repo:file` from the hub.
    ///
    /// Without a file: the GGUF model in Q4_K_M, else in Q4_0, else the only one; from a repository without GGUF files
    /// the Hugging Face directory (configuration, tokenizer, template, all safetensors files). `file` is a file name
    /// or a quantisation such as `Q8_0`; of a split GGUF all parts are fetched. Files that are here already and have
    /// the digest that the hub states are not fetched again. Safetensors files right in a Hugging Face directory that
    /// are not among those of the repository are deleted.
    ///
    /// # Errors
    /// [`StoreError::BadSpec`] for a malformed argument; what the hub or the network says otherwise. After
    /// [`StoreError::Interrupted`], or when the program is killed, the same call goes on where it stopped.
    pub fn pull(&self, hub: &Hub, spec: &str, progress: &mut dyn Progress) -> Result<Pulled, StoreError> {
        let spec = Spec::parse(spec)?;
        let repo = spec.id();
        let listing = hub.list(&repo)?;
        let files = choose(&repo, &listing.names, spec.file.as_deref())?;
        for name in &files {
            check_relative(name).map_err(|reason| StoreError::UnsafeName {
                repo: repo.clone(),
                name: name.clone(),
                reason,
            })?;
        }
        let dir = self.dir().join(&spec.org).join(&spec.repo);
        let is_directory = files.last().is_some_and(|f| f == CONFIG) && files.len() > 1;
        let mut remotes = Vec::with_capacity(files.len());
        for name in &files {
            remotes.push(hub.stat(&repo, &listing.revision, name)?);
        }
        if is_directory {
            unmark(&dir, &remotes)?;
        }
        let (mut total_bytes, mut received_bytes) = (0u64, 0u64);
        for remote in &remotes {
            if is_directory && remote.name == CONFIG {
                // With these beside the new ones the directory would be read as another model.
                remove_other_weights(&dir, &files)?;
            }
            let received = fetch(hub, &repo, remote, &dir.join(&remote.name), progress);
            let received = received.inspect_err(|_| remove_empty(self.dir(), &dir.join(&remote.name)))?;
            received_bytes = received_bytes.saturating_add(received);
            total_bytes = total_bytes.saturating_add(remote.bytes);
        }
        let path = if is_directory { dir } else { dir.join(&files[0]) };
        Ok(Pulled { path, files, total_bytes, received_bytes })
    }
}

/// The file whose presence says that a directory is whole.
const CONFIG: &str = "config.json";

/// Takes the mark of a whole directory away if any of `remotes` is going to be fetched: until they all are, files of two
/// versions may lie side by side.
fn unmark(dir: &Path, remotes: &[Remote]) -> Result<(), StoreError> {
    let mark = dir.join(CONFIG);
    if !mark.exists() {
        return Ok(());
    }
    // The mark itself has no digest, as a small file: that it is fetched again says nothing.
    for remote in remotes.iter().filter(|remote| remote.name != CONFIG) {
        if !is_current(remote, &dir.join(&remote.name))? {
            return fs::remove_file(&mark).map_err(|e| StoreError::io("remove", &mark, e));
        }
    }
    Ok(())
}

/// Removes the directories above `path` that are empty, up to `top` and without it.
fn remove_empty(top: &Path, path: &Path) {
    for dir in path.ancestors().skip(1).take_while(|dir| *dir != top && dir.starts_with(top)) {
        // Refused where something is in it: then what is above is not empty either.
        if fs::remove_dir(dir).is_err() {
            return;
        }
    }
}

/// Deletes weights and their indexes that lie in `dir` and are not among `files`: those of an earlier version.
fn remove_other_weights(dir: &Path, files: &[String]) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_string) else { continue };
        let is_weights = name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
        if is_weights && !files.contains(&name) && entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
            fs::remove_file(entry.path()).map_err(|e| StoreError::io("remove", &entry.path(), e))?;
        }
    }
    Ok(())
}
