//! The shaders of the Vulkan device: SPIR-V lies compiled in the repository, beside a digest of the sources it was made
//! from.
//!
//! `shaders` checks the digest, and needs no compiler. `compile-shaders` makes the SPIR-V anew with glslang, which
//! `cargo xtask` leaves out unless told otherwise:
//!
//! ```text
//! cargo run -p xtask --features glslang -- compile-shaders
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::workspace;
use crate::{Error, Report};

const SOURCES: &str = "crates/vulkan/shaders";
const COMPILED: &str = "crates/vulkan/spirv";
const DIGEST: &str = "SOURCES.sha256";
const COMMAND: &str = "cargo run -p xtask --features glslang -- compile-shaders";

/// Checks that the SPIR-V was made from the sources as they are.
pub(crate) fn run() -> Result<Report, Error> {
    let sources = sources()?;
    let compiled = workspace::root().join(COMPILED);
    let stated = read(&compiled.join(DIGEST))?;
    let mut errors = Vec::new();
    if String::from_utf8_lossy(&stated).trim() != digest(&sources) {
        errors.push(format!("{SOURCES} is newer than {COMPILED}: run '{COMMAND}' and add what changed"));
    }
    let names: Vec<&String> = sources.keys().filter(|name| name.ends_with(".comp")).collect();
    for name in &names {
        let path = compiled.join(spirv_name(name));
        if !path.exists() {
            errors.push(format!("{COMPILED}/{} is missing: run '{COMMAND}'", spirv_name(name)));
        }
    }
    Ok(Report {
        errors,
        warnings: Vec::new(),
        summary: format!("{} shaders, compiled from their sources", names.len()),
    })
}

/// Sources by file name.
fn sources() -> Result<BTreeMap<String, String>, Error> {
    let folder = workspace::root().join(SOURCES);
    let fail = |source| Error::Read { path: PathBuf::from(SOURCES), source };
    let mut sources = BTreeMap::new();
    for entry in fs::read_dir(&folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".comp") || name.ends_with(".glsl") {
            sources.insert(name, String::from_utf8_lossy(&read(&path)?).into_owned());
        }
    }
    Ok(sources)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Over names and contents, in the order of the names.
fn digest(sources: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    for (name, text) in sources {
        hash.update(format!("{name} {}\n", text.len()));
        hash.update(text);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn spirv_name(source: &str) -> String {
    source.replace(".comp", ".spv")
}

/// Compiles every shader for Vulkan 1.3 and writes the SPIR-V with the digest.
#[cfg(feature = "glslang")]
pub(crate) fn compile() -> Result<Report, Error> {
    let sources = sources()?;
    let folder = workspace::root().join(COMPILED);
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|source| Error::Write { path, source })
    };
    fs::create_dir_all(&folder).map_err(|source| Error::Write { path: folder.clone(), source })?;
    let mut errors = Vec::new();
    let mut count = 0;
    for (name, text) in sources.iter().filter(|(name, _)| name.ends_with(".comp")) {
        match spirv(text, &sources) {
            Ok(words) => {
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                write(&spirv_name(name), &bytes)?;
                count += 1;
            }
            Err(log) => errors.push(format!("{name}: {log}")),
        }
    }
    if errors.is_empty() {
        write(DIGEST, format!("{}\n", digest(&sources)).as_bytes())?;
    }
    Ok(Report { errors, warnings: Vec::new(), summary: format!("{count} shaders compiled") })
}

#[cfg(feature = "glslang")]
fn spirv(text: &str, sources: &BTreeMap<String, String>) -> Result<Vec<u32>, String> {
    use glslang::include::{IncludeHandler, IncludeResult, IncludeType};
    use glslang::{
        Compiler, CompilerOptions, ShaderInput, ShaderSource, ShaderStage, SourceLanguage, SpirvVersion, Target,
        VulkanVersion,
    };

    struct Includes<'a>(&'a BTreeMap<String, String>);
    impl IncludeHandler for Includes<'_> {
        fn include(&mut self, _: IncludeType, name: &str, _: &str, _: usize) -> Option<IncludeResult> {
            let data = self.0.get(name)?.clone();
            Some(IncludeResult { name: name.to_owned(), data })
        }
    }

    let compiler = Compiler::acquire().ok_or("glslang does not start")?;
    let source = ShaderSource::from(text.to_owned());
    let mut includes = Includes(sources);
    let options = CompilerOptions {
        source_language: SourceLanguage::GLSL,
        target: Target::Vulkan { version: VulkanVersion::Vulkan1_3, spirv_version: SpirvVersion::SPIRV1_6 },
        version_profile: None,
        messages: glslang::ShaderMessage::DEFAULT,
    };
    let defines: Option<&[(&str, Option<&str>)]> = None;
    let input = ShaderInput::new(&source, ShaderStage::Compute, &options, defines, Some(&mut includes))
        .map_err(|error| error.to_string())?;
    let shader = compiler.create_shader(input).map_err(|error| error.to_string())?;
    let mut program = compiler.create_program();
    program.add_shader(&shader);
    program.compile(ShaderStage::Compute).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_sees_names_and_contents() {
        let of = |files: &[(&str, &str)]| {
            digest(&files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
        };
        let one = of(&[("a.comp", "x"), ("b.glsl", "y")]);
        assert_eq!(one.len(), 64);
        for other in [&[("a.comp", "x")][..], &[("a.comp", "xy"), ("b.glsl", "")], &[("a.glsl", "x"), ("b.glsl", "y")]]
        {
            assert_ne!(one, of(other));
        }
    }
}
