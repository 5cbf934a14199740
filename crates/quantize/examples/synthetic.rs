//! Times the quantisation of a model of Gemma 3 27B's shape with random weights in bf16: `synthetic DIR LAYERS
//! PRESET...`, of which the true model has 62. DIR takes 54 GB and the results; a file system in memory keeps disks out
//! of the measurement.

use std::{error::Error, fs, os::unix::fs::FileExt, path::Path, sync::atomic::AtomicUsize, time::Instant};

use files::gguf::{Gguf, Head, TensorHead, Value};
use quantize::{Mix, Plan, Source, WriteOptions, write};
use tensor::{DType, blocks::random_blocks};

const HIDDEN: usize = 5376;
const FEED_FORWARD: usize = 21_504;
const QUERIES: usize = 4096;
const KEYS: usize = 2048;
const VOCAB: usize = 262_208;

fn heads(layers: usize) -> Vec<TensorHead> {
    let head = |name: String, shape: &[usize]| TensorHead { name, dtype: DType::BF16, shape: shape.to_vec() };
    let mut heads = vec![head("token_embd.weight".to_owned(), &[VOCAB, HIDDEN])];
    for layer in 0..layers {
        for (kind, rows, cols) in [
            ("attn_q", QUERIES, HIDDEN),
            ("attn_k", KEYS, HIDDEN),
            ("attn_v", KEYS, HIDDEN),
            ("attn_output", HIDDEN, QUERIES),
            ("ffn_gate", FEED_FORWARD, HIDDEN),
            ("ffn_up", FEED_FORWARD, HIDDEN),
            ("ffn_down", HIDDEN, FEED_FORWARD),
        ] {
            heads.push(head(format!("blk.{layer}.{kind}.weight"), &[rows, cols]));
        }
    }
    heads
}

/// Writes the source, a tensor a thread.
fn make(path: &Path, layers: usize) -> Result<(), Box<dyn Error>> {
    let heads = heads(layers);
    let metadata = [("general.architecture".to_owned(), Value::from("gemma3"))];
    let head = Head::new(&metadata, &heads)?;
    let file = fs::File::create(path)?;
    file.write_all_at(&head.bytes, 0)?;
    file.set_len(head.file_bytes)?;
    let next = AtomicUsize::new(0);
    let work = || -> std::io::Result<()> {
        while let Some((tensor, (at, bytes))) = {
            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            heads.get(index).zip(head.tensors.get(index))
        } {
            // A row's worth at a time: the whole would be 2.8 GB for the embedding.
            const RUN: u64 = 64 << 20;
            for start in (0..*bytes).step_by(RUN as usize) {
                let len = RUN.min(bytes - start);
                file.write_all_at(&random_blocks(tensor.dtype, len as usize / 2, at + start, 0.02), at + start)?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, layers, presets @ ..] = &arguments[..] else { return Err("usage: DIR LAYERS PRESET...".into()) };
    let (source, target) = (Path::new(dir).join("source.gguf"), Path::new(dir).join("target.gguf"));
    let start = Instant::now();
    make(&source, layers.parse()?)?;
    println!("made {} bytes in {:.1} s", fs::metadata(&source)?.len(), start.elapsed().as_secs_f64());
    let model = Source::gguf(&Gguf::open(&source)?);
    for preset in presets {
        let plan = Plan::new(&model, &Mix::preset(preset)?, false)?;
        let report = write(&model, &plan, None, &target, &WriteOptions::default(), &mut |_, _| ())?;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned();
        println!(
            "{preset}: {:.2} s, {:.1} GB/s of bf16, {} bytes, {} threads, {}",
            report.seconds,
            report.source_bytes_per_s / 1e9,
            report.file_bytes,
            report.threads,
            peak.split_whitespace().collect::<Vec<_>>().join(" ")
        );
        fs::remove_file(&target)?;
    }
    fs::remove_file(&source)?;
    Ok(())
}
