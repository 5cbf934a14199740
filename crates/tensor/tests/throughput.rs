//! How fast blocks decode and are made, on one core. A measurement, so it runs only when asked for:
//! `cargo test --release -p tensor --test throughput -- --ignored --nocapture`.

use std::time::Instant;

use tensor::{
    DType,
    blocks::{dequantize, random_blocks},
};

/// Large enough that the bytes come from memory, in rows as a loader would take them.
const ELEMENTS: usize = 1 << 25;
const ROW: usize = 1 << 14;

#[test]
#[ignore = "a measurement"]
fn print_the_speed_of_every_type() {
    println!("{:<8} {:>12} {:>12} {:>14}", "type", "make GB/s", "decode GB/s", "Gelements/s");
    for dtype in DType::all().filter(|dtype| dtype.is_weight()) {
        let start = Instant::now();
        let bytes = random_blocks(dtype, ELEMENTS, 1, 1.0);
        let made_s = start.elapsed().as_secs_f64();
        let mut row = vec![0.0; ROW];
        let start = Instant::now();
        for src in bytes.chunks(dtype.row_bytes(ROW).expect("whole blocks")) {
            dequantize(dtype, src, &mut row).expect("whole blocks");
            std::hint::black_box(&row);
        }
        let decoded_s = start.elapsed().as_secs_f64();
        let gb = bytes.len() as f64 / 1e9;
        println!(
            "{:<8} {:>12.2} {:>12.2} {:>14.2}",
            dtype.name(),
            gb / made_s,
            gb / decoded_s,
            ELEMENTS as f64 / 1e9 / decoded_s
        );
    }
}
