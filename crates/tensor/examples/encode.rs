//! Packs a file of raw `f32` into a file of blocks and says how fast, on one thread:
//! `encode TYPE IN OUT [IMPORTANCE]`. `scripts/quantiser_versus.py` holds the result against another quantiser.

use std::{error::Error, fs, time::Instant};

use tensor::{DType, encode::encode};

fn floats(path: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let bytes = fs::read(path)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, input, output, rest @ ..] = &arguments[..] else { return Err("usage: TYPE IN OUT [IMPORTANCE]".into()) };
    let dtype = DType::all().find(|dtype| dtype.name() == name).ok_or("no such type")?;
    let values = floats(input)?;
    let importance = rest.first().map(|path| floats(path)).transpose()?;
    let mut packed = vec![0; dtype.row_bytes(values.len()).ok_or("no whole blocks")?];
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        encode(dtype, &values, importance.as_deref(), &mut packed)?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    fs::write(output, packed)?;
    println!("{:.1}", values.len() as f64 / best / 1e6);
    Ok(())
}
