//! A writer of small GGUF files, version 3, little endian (ggml `docs/gguf.md`).

use tensor::DType;

const ALIGNMENT: usize = 32;

/// A GGUF file in the making.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    keys: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, DType, Vec<usize>, Vec<u8>)>,
}

impl Writer {
    /// An empty file of an architecture.
    pub fn new(architecture: &str) -> Writer {
        let mut writer = Writer::default();
        writer.str("general.architecture", architecture);
        writer
    }

    /// Sets a key to a string.
    pub fn str(&mut self, key: &str, value: &str) -> &mut Writer {
        self.key(key, 8, string(value))
    }

    /// Sets a key to a u32.
    pub fn u32(&mut self, key: &str, value: u32) -> &mut Writer {
        self.key(key, 4, value.to_le_bytes().to_vec())
    }

    /// Sets a key to an f32.
    pub fn f32(&mut self, key: &str, value: f32) -> &mut Writer {
        self.key(key, 6, value.to_le_bytes().to_vec())
    }

    /// Sets a key to a bool.
    pub fn bool(&mut self, key: &str, value: bool) -> &mut Writer {
        self.key(key, 7, vec![value.into()])
    }

    /// Sets a key to an array of u32.
    pub fn u32s(&mut self, key: &str, values: &[u32]) -> &mut Writer {
        let elements = values.iter().flat_map(|value| value.to_le_bytes());
        let head = [&4u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.key(key, 9, head.into_iter().chain(elements).collect())
    }

    /// Sets a key to an array of bools.
    pub fn bools(&mut self, key: &str, values: &[bool]) -> &mut Writer {
        let head = [&7u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.key(key, 9, head.into_iter().chain(values.iter().map(|value| u8::from(*value))).collect())
    }

    /// Sets a key to an array of f32.
    pub fn f32s(&mut self, key: &str, values: &[f32]) -> &mut Writer {
        let elements = values.iter().flat_map(|value| value.to_le_bytes());
        let head = [&6u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.key(key, 9, head.into_iter().chain(elements).collect())
    }

    /// Sets a key to an array of strings.
    pub fn strs<S: AsRef<str>>(&mut self, key: &str, values: &[S]) -> &mut Writer {
        let head = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.key(key, 9, head.into_iter().chain(values.iter().flat_map(|value| string(value.as_ref()))).collect())
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &str) -> &mut Writer {
        self.keys.retain(|(name, _)| name != key);
        self
    }

    fn key(&mut self, key: &str, kind: u32, value: Vec<u8>) -> &mut Writer {
        self.remove(key);
        self.keys.push((key.to_owned(), [&kind.to_le_bytes()[..], &value].concat()));
        self
    }

    /// Adds a tensor, in place of one of the same name. `shape` has the row's length last.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize], data: Vec<u8>) -> &mut Writer {
        self.remove_tensor(name);
        self.tensors.push((name.to_owned(), dtype, shape.to_vec(), data));
        self
    }

    /// Adds a tensor of `f32`.
    pub fn tensor_f32(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Writer {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, DType::F32, shape, data)
    }

    /// Removes a tensor.
    pub fn remove_tensor(&mut self, name: &str) -> &mut Writer {
        self.tensors.retain(|(tensor, ..)| tensor != name);
        self
    }

    /// The bytes of the file.
    pub fn finish(&self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            file.extend(string(key));
            file.extend(value);
        }
        let mut offset = 0;
        for (name, dtype, shape, data) in &self.tensors {
            file.extend(string(name));
            file.extend((shape.len() as u32).to_le_bytes());
            file.extend(shape.iter().rev().flat_map(|dim| (*dim as u64).to_le_bytes()));
            file.extend(dtype.ggml().to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset += data.len().next_multiple_of(ALIGNMENT);
        }
        for (.., data) in &self.tensors {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            file.extend(data);
        }
        file
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reader_reads_it() {
        let mut writer = Writer::new("toy");
        writer.u32("toy.n", 1).u32("toy.n", 3).f32("toy.x", 0.5).u32s("toy.list", &[1, 2]).bools("toy.b", &[true]);
        writer.tensor_f32("a", &[3], &[1.0, 2.0, 3.0]).tensor_f32("b", &[2, 1], &[4.0, 5.0]);
        let file = files::gguf::Gguf::parse(writer.finish().into(), "toy.gguf").unwrap();
        let meta = file.metadata();
        assert_eq!((meta.u32("toy.n").unwrap(), meta.f32("toy.x").unwrap()), (3, 0.5));
        assert_eq!((meta.u32s("toy.list").unwrap(), meta.bools("toy.b").unwrap()), (vec![1, 2], vec![true]));
        assert_eq!(file.tensor("b").unwrap().shape, [2, 1]);
        assert_eq!(&file.tensor("b").unwrap().data[..], [4.0f32.to_le_bytes(), 5.0f32.to_le_bytes()].concat());
    }
}
