//! safetensors: one file, an index with its shards, or a directory of files, memory-mapped.
//!
//! Source: the format's README, <https://github.com/huggingface/safetensors>. A file is a length, a JSON header and
//! the data; the data of the tensors follow each other without gaps and fill the file.

mod header;
mod shards;

use std::path::{Path, PathBuf};

use tensor::Bytes;

use crate::read::map_file;
use crate::table::TensorTable;
use crate::{FileError, TensorInfo};

/// The tensors of one or several safetensors files.
#[derive(Clone, Debug)]
pub struct SafeTensors {
    table: TensorTable,
    parts: Vec<PathBuf>,
    /// Tensors in each part and those before it.
    part_ends: Vec<usize>,
    file_bytes: u64,
}

impl SafeTensors {
    /// Maps and checks one file.
    ///
    /// # Errors
    /// Where the file cannot be read or breaks the format, or a tensor has a type that [`tensor::DType`] lacks.
    pub fn open(path: &Path) -> Result<SafeTensors, FileError> {
        SafeTensors::open_all(vec![path.into()], &path.display().to_string())
    }

    /// Opens the model of a directory: `model.safetensors` if it is there, else the shards that
    /// `model.safetensors.index.json` names, else every `*.safetensors` file. This is the order in which the
    /// `transformers` library looks, which stops before the last.
    ///
    /// # Errors
    /// As [`SafeTensors::open`]; where the index names a shard or tensor that is missing; where a shard's name is not
    /// a plain file name; where two files have a tensor of the same name.
    pub fn open_dir(dir: &Path) -> Result<SafeTensors, FileError> {
        shards::open_dir(dir)
    }

    /// Checks a file held in memory. `name` stands for the path in messages.
    ///
    /// # Errors
    /// As [`SafeTensors::open`].
    pub fn parse(bytes: Bytes, name: &str) -> Result<SafeTensors, FileError> {
        let fail = |problem| FileError::new(name, problem);
        let file_bytes = bytes.len() as u64;
        let table = header::tensors(&bytes).and_then(TensorTable::new).map_err(fail)?;
        Ok(SafeTensors { part_ends: vec![table.infos().len()], table, parts: vec![name.into()], file_bytes })
    }

    /// Every tensor, in the order of the files and of the data in them.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.table.infos()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.table.get(name)
    }

    /// The file that holds the tensor of this name.
    pub fn part_of(&self, name: &str) -> Option<&Path> {
        let position = self.table.position(name)?;
        let part = self.part_ends.partition_point(|&end| end <= position);
        self.parts.get(part).map(PathBuf::as_path)
    }

    /// The files that make up the model, in order.
    pub fn parts(&self) -> &[PathBuf] {
        &self.parts
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Joins several files; `whole` names them together in messages.
    fn open_all(paths: Vec<PathBuf>, whole: &str) -> Result<SafeTensors, FileError> {
        let mut infos = Vec::new();
        let mut part_ends = Vec::new();
        let mut file_bytes = 0;
        for path in &paths {
            let bytes = map_file(path)?;
            file_bytes += bytes.len() as u64;
            infos.extend(header::tensors(&bytes).map_err(|problem| FileError::new(path.display(), problem))?);
            part_ends.push(infos.len());
        }
        let table = TensorTable::new(infos).map_err(|problem| FileError::new(whole, problem))?;
        Ok(SafeTensors { table, parts: paths, part_ends, file_bytes })
    }
}

/// Checks the bytes of a `model.safetensors.index.json`: its form and the names of its shards.
///
/// # Errors
/// Where it is not JSON of the expected form, or a shard's name could lead out of the directory.
pub fn check_index(json: &str, name: &str) -> Result<(), FileError> {
    shards::Index::parse(json).map(|_| ()).map_err(|problem| FileError::new(name, problem))
}
