//! Names: what may become a path, what a pull's argument means, how split GGUF files are called, which names are near.

use crate::StoreError;

/// Longest component of a file name. File systems allow 255 bytes; the rest is room for the `.part` suffix.
const MAX_COMPONENT_BYTES: usize = 200;
/// Deepest file in a repository that is taken, and that is looked for on disk.
pub(crate) const MAX_DEPTH: usize = 8;
/// Longest organisation or repository name that the hub gives out.
const MAX_REPO_BYTES: usize = 96;

/// A hub repository, and what is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    /// Organisation or user.
    pub(crate) org: String,
    /// Repository.
    pub(crate) repo: String,
    /// A file name, or a quantisation such as `Q8_0`.
    pub(crate) file: Option<String>,
}

impl Spec {
    /// Reads `org/repo` or `org/repo:file`.
    pub(crate) fn parse(text: &str) -> Result<Self, StoreError> {
        let bad = |reason| StoreError::BadSpec { spec: text.to_string(), reason };
        let (id, file) = match text.split_once(':') {
            Some((id, file)) => (id, Some(file)),
            None => (text, None),
        };
        let (org, repo) = id.split_once('/').ok_or_else(|| bad("there is no '/'"))?;
        check_repo_part(org).map_err(bad)?;
        check_repo_part(repo).map_err(bad)?;
        if let Some(file) = file {
            check_relative(file).map_err(bad)?;
        }
        Ok(Self { org: org.into(), repo: repo.into(), file: file.map(Into::into) })
    }

    /// `org/repo`.
    pub(crate) fn id(&self) -> String {
        format!("{}/{}", self.org, self.repo)
    }
}

/// The hub's own rule for names, which also makes them plain path components.
fn check_repo_part(part: &str) -> Result<(), &'static str> {
    if part.is_empty() || part.len() > MAX_REPO_BYTES {
        return Err("the organisation and the repository have 1 to 96 characters each");
    }
    if !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Err("the organisation and the repository consist of letters, digits, '.', '_' and '-'");
    }
    if part.starts_with(['.', '-']) || part.contains("..") {
        return Err("the organisation and the repository do not start with '.' or '-' nor contain '..'");
    }
    Ok(())
}

/// Whether `name` is a plain relative path with `/` between components: it can then be joined to a directory and stays
/// below it on every system, and it cannot be taken for a `.part` file or a hidden one.
pub(crate) fn check_relative(name: &str) -> Result<(), &'static str> {
    if name.split('/').count() > MAX_DEPTH {
        return Err("it is nested too deeply");
    }
    for component in name.split('/') {
        if component.is_empty() {
            return Err("it has an empty path component");
        }
        if component.len() > MAX_COMPONENT_BYTES {
            return Err("it is too long");
        }
        // Covers ".", ".." and hidden files.
        if component.starts_with('.') {
            return Err("a path component starts with '.'");
        }
        if component.chars().any(|c| c.is_control() || matches!(c, '\\' | ':')) {
            return Err("it has a control character, ':' or '\\'");
        }
        if component.ends_with(".part") {
            return Err("it ends in .part, which marks unfinished downloads");
        }
    }
    Ok(())
}

/// Whether `text` is a SHA-256 in hexadecimal.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Takes a split GGUF name apart: `dir/m-00002-of-00003.gguf` is `("dir/m", 2, 3)`.
///
/// The form is that of llama.cpp's `gguf-split` (`%s-%05d-of-%05d.gguf`). The crate `files` reads it too, when it opens
/// such a file; neither of the two depends on the other.
pub(crate) fn split_part(name: &str) -> Option<(&str, u32, u32)> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (prefix, index) = rest.rsplit_once('-')?;
    let number = |s: &str| {
        let digits = s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| s.parse::<u32>().ok()).flatten()
    };
    let (index, total) = (number(index)?, number(total)?);
    (1 <= index && index <= total).then_some((prefix, index, total))
}

/// Up to three of `candidates` that `wanted` may have been meant to be, best first.
pub(crate) fn near<'a>(wanted: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    // Edit distance is quadratic; nobody mistypes a name of this length into another one.
    const MAX_BYTES: usize = 256;
    let wanted = wanted.to_lowercase();
    if wanted.len() > MAX_BYTES {
        return Vec::new();
    }
    let mut scored: Vec<(usize, &str)> = Vec::new();
    for candidate in candidates.into_iter().filter(|c| c.len() <= MAX_BYTES) {
        let lower = candidate.to_lowercase();
        let distance = edit_distance(&wanted, &lower);
        let contains = wanted.len() >= 3 && lower.contains(&wanted);
        if contains || distance <= (wanted.chars().count() / 3).max(2) {
            scored.push((if contains { 0 } else { distance }, candidate));
        }
    }
    scored.sort();
    scored.dedup();
    scored.into_iter().take(3).map(|(_, name)| name.to_string()).collect()
}

/// Levenshtein distance in characters, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs() {
        let ok = |org: &str, repo: &str, file: Option<&str>| {
            Some(Spec { org: org.into(), repo: repo.into(), file: file.map(Into::into) })
        };
        for (text, want) in [
            ("a/b", ok("a", "b", None)),
            ("Org-1/Repo_2.5-GGUF:Q8_0", ok("Org-1", "Repo_2.5-GGUF", Some("Q8_0"))),
            ("a/b:sub/m.gguf", ok("a", "b", Some("sub/m.gguf"))),
            ("plain", None),
            ("a/b/c", None),
            ("../b", None),
            ("a/..", None),
            ("a/b..c", None),
            ("/b", None),
            ("a/", None),
            ("a/b:", None),
            ("a/b:../../x", None),
            ("a/b:/etc/passwd", None),
            ("a/b c", None),
            ("a/b\n", None),
            ("https://host/a/b", None),
        ] {
            assert_eq!(Spec::parse(text).ok(), want, "{text:?}");
        }
        assert!(Spec::parse(&format!("a/{}", "x".repeat(97))).is_err());
    }

    #[test]
    fn relative_names() {
        for name in ["model.gguf", "a/b/c.safetensors", "Q4_K_M", "a b (1).gguf", "modèle.gguf"] {
            assert_eq!(check_relative(name), Ok(()), "{name}");
        }
        let long = "x".repeat(201);
        let deep = "d/".repeat(8) + "f";
        for name in [
            "",
            "/",
            "/abs",
            "a//b",
            "a/",
            ".",
            "..",
            "../x",
            "a/../b",
            ".hidden",
            "a/.git",
            "a\\..\\b",
            "C:x",
            "a\0b",
            "a\nb",
            "m.gguf.part",
            &long,
            &deep,
        ] {
            assert!(check_relative(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn split_names() {
        for (name, want) in [
            ("m-00001-of-00003.gguf", Some(("m", 1, 3))),
            ("d/m-x-00003-of-00003.gguf", Some(("d/m-x", 3, 3))),
            ("m-00000-of-00003.gguf", None),
            ("m-00004-of-00003.gguf", None),
            ("m-1-of-3.gguf", None),
            ("m-00001-of-00003.bin", None),
            ("m.gguf", None),
        ] {
            assert_eq!(split_part(name), want, "{name}");
        }
    }

    #[test]
    fn near_misses() {
        let names = ["smollm2-135m", "gemma3-270m", "qwen2.5-coder-1.5b"];
        for (wanted, want) in [
            ("smolm2-135m", vec!["smollm2-135m"]),
            ("SMOLLM2-135M", vec!["smollm2-135m"]),
            ("gemma", vec!["gemma3-270m"]),
            ("coder", vec!["qwen2.5-coder-1.5b"]),
            ("zzzzzzzz", vec![]),
        ] {
            assert_eq!(near(wanted, names), want, "{wanted}");
        }
        assert!(near(&"x".repeat(10_000), names).is_empty());
    }
}
