//! The one error type of the crate. Every message is one line and says what to do where something can be done.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong between a model name and a file.
///
/// Texts that came from a server or from the user are printed with `{:?}`, so that control characters in them cannot
/// reach a terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No environment variable says where models are kept.
    #[error("no model directory: set UNICORN_HOME, XDG_CACHE_HOME or HOME")]
    NoHome,
    /// The argument of a pull is not `org/repo` or `org/repo:file`.
    #[error("{spec:?} is not org/repo or org/repo:file: {reason}")]
    BadSpec {
        /// What was given.
        spec: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// A name that must not be used as a path inside the store.
    #[error("{name:?} cannot name a model in the store: {reason}")]
    BadName {
        /// What was given.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// `HF_ENDPOINT` (or the option of that meaning) is not an `http` or `https` address.
    #[error("hub endpoint {endpoint:?} is not usable: {reason}")]
    BadEndpoint {
        /// What was given.
        endpoint: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// Nothing of this name is here.
    #[error("no model {name:?}: {looked}{}; {hint}", did_you_mean(.suggestions))]
    NotFound {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        looked: String,
        /// The command that would fetch it.
        hint: String,
        /// Names that are close to it, best first, at most three.
        suggestions: Vec<String>,
    },
    /// The path exists and is neither a file nor a Hugging Face directory.
    #[error("{path:?} is a directory without config.json: give a .gguf file or a Hugging Face model directory")]
    NotAModel {
        /// The directory.
        path: PathBuf,
    },
    /// The path exists and is a device, a pipe or a socket.
    #[error("{path:?} is not a regular file: give a .gguf file or a Hugging Face model directory")]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// A file of the model list has another size than the list says.
    #[error(
        "{path:?} has {actual} bytes where {expected} are expected: run `unicorn rm {name}`, then `./quickstart {name}`"
    )]
    WrongSize {
        /// The name in the model list.
        name: &'static str,
        /// The file.
        path: PathBuf,
        /// Bytes on disk.
        actual: u64,
        /// Bytes that the list states.
        expected: u64,
    },
    /// The name fits several models of one repository.
    #[error("{repo} has several models that fit; choose one with {repo}:FILE, of: {}", list(.choices))]
    Ambiguous {
        /// `org/repo`.
        repo: String,
        /// The file names that fit.
        choices: Vec<String>,
    },
    /// A split GGUF lacks a part.
    #[error("split model {name:?} has {present} of its {total} parts")]
    MissingParts {
        /// The first file of the split.
        name: String,
        /// Parts that are there.
        present: usize,
        /// Parts that the file names promise.
        total: u32,
    },
    /// The repository holds neither GGUF files nor `config.json` with safetensors files.
    #[error("{repo} holds no .gguf file, nor config.json with .safetensors files")]
    NoModelFiles {
        /// `org/repo`.
        repo: String,
    },
    /// The repository has no such file and no quantisation of that name.
    #[error("{repo} has no file or quantisation {file:?}; it has: {}", list(.choices))]
    NoSuchFile {
        /// `org/repo`.
        repo: String,
        /// What was asked for.
        file: String,
        /// Model files that are there.
        choices: Vec<String>,
    },
    /// The hub lists a file that it does not have.
    #[error("{endpoint} lists {file:?} in {repo} and does not have it: pull again later, or choose another file")]
    Gone {
        /// `org/repo`.
        repo: String,
        /// The file in the repository.
        file: String,
        /// The hub asked.
        endpoint: String,
    },
    /// The hub does not know the repository.
    #[error("{endpoint} has no repository {repo}, or it is private: check the spelling, or set HF_TOKEN")]
    NoSuchRepo {
        /// `org/repo`.
        repo: String,
        /// The hub asked.
        endpoint: String,
    },
    /// The hub wants a token, or another one (HTTP 401).
    #[error(
        "{repo}: the hub asks for {}: if the name is right, accept the licence at {endpoint}/{repo} and set HF_TOKEN",
        if *.token_sent { "another token (this one was refused)" } else { "a token" }
    )]
    Unauthorised {
        /// `org/repo`.
        repo: String,
        /// The hub asked.
        endpoint: String,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// The licence of the repository has not been accepted by the owner of the token (HTTP 403).
    #[error("{repo} is gated: accept its licence at {endpoint}/{repo} and set HF_TOKEN to a token of that account")]
    Gated {
        /// `org/repo`.
        repo: String,
        /// The hub asked.
        endpoint: String,
    },
    /// The hub answered with a status that has no meaning of its own here.
    #[error("{url} answered HTTP {status}")]
    HttpStatus {
        /// The address.
        url: String,
        /// The status code.
        status: u16,
    },
    /// The hub answered something that is not what its interface says.
    #[error("{url} answered something unexpected: {reason}")]
    BadAnswer {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The hub lists a file whose name is not a plain relative path.
    #[error("{repo} lists a file named {name:?}, which is refused: {reason}")]
    UnsafeName {
        /// `org/repo`.
        repo: String,
        /// The name as the server sent it.
        name: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// No connection.
    #[error("cannot reach {url}: {reason}; check the network, or set HF_ENDPOINT to a mirror")]
    Offline {
        /// The address.
        url: String,
        /// The cause as the network layer states it.
        reason: String,
    },
    /// The transfer stopped and did not come back; the `.part` file stays.
    #[error("{file}: the transfer stopped at {have} of {expected} bytes ({reason}); pull again to go on from there")]
    Interrupted {
        /// The file in the repository.
        file: String,
        /// Bytes kept on disk.
        have: u64,
        /// Bytes of the whole file.
        expected: u64,
        /// The last cause.
        reason: String,
    },
    /// The bytes are not those that the hub states; the `.part` file has been deleted.
    #[error("{file}: SHA-256 is {actual}, the hub states {expected}; the download was deleted, pull again")]
    Checksum {
        /// The file in the repository.
        file: String,
        /// Digest stated by the hub, in hexadecimal.
        expected: String,
        /// Digest of what arrived, in hexadecimal.
        actual: String,
    },
    /// Another process is fetching the same file.
    #[error("{path:?} is being written by another pull")]
    Busy {
        /// The `.part` file.
        path: PathBuf,
    },
    /// The file system is full, or the quota is used up.
    #[error("no space left to {action} {path:?}: free some (`unicorn list`, `unicorn rm`), then pull again to go on")]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
    },
    /// Any other failure of the file system.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the argument was wrong, rather than the world: a command line program exits with 2 for these. A name that
    /// means nothing here is a wrong argument; a model that is here and damaged, and a hub that refuses, are the world.
    pub fn is_misuse(&self) -> bool {
        matches!(
            self,
            Self::BadSpec { .. }
                | Self::BadName { .. }
                | Self::BadEndpoint { .. }
                | Self::NotFound { .. }
                | Self::NotAModel { .. }
                | Self::NotRegular { .. }
        )
    }

    /// Wraps a file system error, telling a full disk from the rest.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, action },
            _ => Self::Io { path, action, source },
        }
    }
}

/// How many names an error lists before it says how many more there are.
const LISTED: usize = 12;

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".into();
    }
    let shown: Vec<String> = names.iter().take(LISTED).map(|n| n.escape_debug().to_string()).collect();
    match names.len().saturating_sub(LISTED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn did_you_mean(suggestions: &[String]) -> String {
    if suggestions.is_empty() {
        return String::new();
    }
    format!("; did you mean {}?", suggestions.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_disk_is_told_from_other_failures() {
        for (kind, full) in [
            (io::ErrorKind::StorageFull, true),
            (io::ErrorKind::QuotaExceeded, true),
            (io::ErrorKind::PermissionDenied, false),
        ] {
            let error = StoreError::io("write", Path::new("a.part"), kind.into());
            assert_eq!(matches!(error, StoreError::DiskFull { .. }), full, "{kind:?}");
        }
    }

    #[test]
    fn long_lists_are_cut_and_escaped() {
        let names: Vec<String> = (0..20).map(|i| format!("f{i}\u{1b}")).collect();
        let text = list(&names);
        assert!(text.ends_with("and 8 more"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}
