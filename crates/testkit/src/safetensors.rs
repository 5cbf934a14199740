//! A writer of small safetensors files: a length, a JSON header, the data.

use tensor::DType;

/// A tensor to be written: name, element type, shape with the row's length last, data.
pub type Tensor = (String, DType, Vec<usize>, Vec<u8>);

/// The bytes of a file with these tensors.
pub fn write(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, dtype, shape, data) in tensors {
        let offsets = [end, end + data.len()];
        let entry = serde_json::json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": offsets });
        header.insert(name.clone(), entry);
        end += data.len();
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    tensors.iter().for_each(|(.., data)| file.extend(data));
    file
}

/// The tensors of an open file, to be changed and written again.
pub fn read(file: &files::safetensors::SafeTensors) -> Vec<Tensor> {
    let tensors = file.tensors().iter();
    tensors.map(|info| (info.name.clone(), info.dtype, info.shape.clone(), info.data.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use files::safetensors::SafeTensors;

    use super::*;

    #[test]
    fn the_reader_reads_it() {
        let tensors = vec![
            ("b".to_owned(), DType::F32, vec![1, 2], vec![1; 8]),
            ("a".to_owned(), DType::BF16, vec![3], vec![2; 6]),
        ];
        let file = SafeTensors::parse(write(&tensors).into(), "t").unwrap();
        assert_eq!(read(&file), tensors);
    }
}
