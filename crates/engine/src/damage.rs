//! What is wrong with a model that computes no numbers: its weights are searched only then, as it takes as long as
//! reading them.

use graph::{Graph, Weight};

/// Names the first weight that holds what is no finite number, and says what would help.
pub(crate) fn describe(graph: &Graph) -> String {
    match graph.weights().iter().find_map(|weight| Some((weight, first_damaged(weight)?))) {
        Some((weight, (row, column, value))) => format!(
            "tensor {} holds {value} (row {row}, column {column}): the file is damaged, fetch or convert it again",
            weight.name
        ),
        None => {
            "each of its weights is a finite number, so what is computed from them grows beyond what 16 bits or 32 \
                 hold: try --arithmetic f32, and another file of the model"
                .to_owned()
        }
    }
}

/// Row, column and value of a weight's first element that is not finite.
fn first_damaged(weight: &Weight) -> Option<(usize, usize, f32)> {
    let mut values = vec![0.0; weight.cols];
    let found = (0..weight.rows).find_map(|row| {
        weight.decode_row(row, &mut values);
        let column = values.iter().position(|value| !value.is_finite())?;
        Some((row, column, values[column]))
    });
    // It lies in memory a second time while it is searched, in the form of the devices and in that of the file.
    weight.data.release();
    found
}

#[cfg(test)]
mod tests {
    use tensor::{Bytes, DType};

    use super::*;

    #[test]
    fn the_first_element_that_is_no_number_is_found_in_any_type() {
        let mut values = vec![0.5f32; 6];
        let whole = Weight::from_f32("w", 2, 3, &values);
        assert_eq!(first_damaged(&whole), None);
        values[4] = f32::INFINITY;
        values[5] = f32::NAN;
        assert_eq!(first_damaged(&Weight::from_f32("w", 2, 3, &values)), Some((1, 1, f32::INFINITY)));
        // Q8_0: a 16-bit scale and 32 bytes (ggml-common.h); the scale of the second block is NaN.
        let mut bytes = vec![1u8; 2 * 34];
        bytes[34..36].copy_from_slice(&0x7e00u16.to_le_bytes());
        let (dtype, data) = (DType::Q8_0, Bytes::from(bytes));
        let (row, column, value) = first_damaged(&Weight { name: "w".into(), dtype, rows: 1, cols: 64, data }).unwrap();
        assert!((row, column) == (0, 32) && value.is_nan());
    }
}
