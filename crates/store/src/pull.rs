//! A pull: from `org/repo[:file]` to files in the store.

use crate::download::fetch;
use crate::hub::Hub;
use crate::names::{Spec, check_relative};
use crate::select::choose;
use crate::{Store, StoreError};
use std::path::PathBuf;

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
    /// the digest that the hub states are not fetched again.
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
        let (mut total_bytes, mut received_bytes) = (0u64, 0u64);
        for name in &files {
            let remote = hub.stat(&repo, &listing.revision, name)?;
            received_bytes = received_bytes.saturating_add(fetch(hub, &repo, &remote, &dir.join(name), progress)?);
            total_bytes = total_bytes.saturating_add(remote.bytes);
        }
        let is_directory = files.last().is_some_and(|f| f == "config.json") && files.len() > 1;
        let path = if is_directory { dir } else { dir.join(&files[0]) };
        Ok(Pulled { path, files, total_bytes, received_bytes })
    }
}
