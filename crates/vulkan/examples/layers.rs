//! Times steps of a stack of layers in the shape of Gemma 3 or Qwen2.5, with random weights, and where the time goes
//! kernel by kernel.
//!
//! ```text
//! cargo run --release -p vulkan --example layers -- 4b q4_0 ROWS... [--layers N] [--context N] [--kv q8] [--top N]
//!     [--profile | --variants]
//! ```
//!
//! ROWS are tokens a step: 1 or 16 is decoding of as many sequences, p512 is a prompt of 512 tokens. `--variants` times
//! every variant of the kernels that have some, `--kv q8` keeps keys and values as bytes. Set `UNICORN_VULKAN_WITHOUT` to
//! leave capabilities unused, and `UNICORN_VULKAN_SUBMIT_MS` to bound submits.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use graph::{
    Activation, Device, Execution, Graph, GraphBuilder, KV_BLOCK_TOKENS, KvType, PlanOptions, RopePairs, RopeScaling,
    RopeTable, Span, Step, ValueId, Weight, WeightId, plan,
};
use tensor::{Bytes, DType, blocks::random_blocks};
use vulkan::{Variant, Vulkan, VulkanOptions};

struct Shape {
    name: &'static str,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    feed_forward: usize,
    layers: usize,
    vocab: usize,
    /// As Gemma: norms of heads and behind each block, windows, GELU. Otherwise as Qwen2.5: biases of q, k and v, SiLU.
    gemma: bool,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "4b",
        hidden: 2560,
        heads: 8,
        kv_heads: 4,
        head_dim: 256,
        feed_forward: 10240,
        layers: 34,
        vocab: 262_144,
        gemma: true,
    },
    Shape {
        name: "27b",
        hidden: 5376,
        heads: 32,
        kv_heads: 16,
        head_dim: 128,
        feed_forward: 21504,
        layers: 62,
        vocab: 262_144,
        gemma: true,
    },
    Shape {
        name: "7b",
        hidden: 3584,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        feed_forward: 18944,
        layers: 28,
        vocab: 152_064,
        gemma: false,
    },
];

struct Maker {
    b: GraphBuilder,
    /// Random blocks, as long as the longest weight: each weight is a slice of them.
    blocks: Vec<(DType, Bytes)>,
}

impl Maker {
    fn weight(&mut self, dtype: DType, rows: usize, cols: usize) -> WeightId {
        let bytes = dtype.row_bytes(cols).expect("whole blocks") * rows;
        let known = self.blocks.iter().position(|(own, data)| *own == dtype && data.len() >= bytes);
        let at = known.unwrap_or_else(|| {
            let data = random_blocks(dtype, rows * cols, 7, 1.0 / (cols as f32).sqrt());
            self.blocks.push((dtype, data.into()));
            self.blocks.len() - 1
        });
        let data = self.blocks[at].1.slice(0..bytes).expect("long enough");
        self.b.weight(Weight { name: format!("{dtype} {rows}x{cols}"), dtype, rows, cols, data }).unwrap()
    }

    fn norm(&mut self, x: ValueId, group: usize) -> ValueId {
        let weight = self.b.weight(Weight::from_f32("norm", 1, group, &vec![0.5; group])).unwrap();
        self.b.rms_norm(x, Some(weight), group, 1e-6, 0.0).unwrap()
    }

    fn linear(&mut self, x: ValueId, dtype: DType, rows: usize) -> ValueId {
        let cols = self.b.width(x);
        let weight = self.weight(dtype, rows, cols);
        self.b.linear(x, weight, None).unwrap()
    }

    fn biased(&mut self, x: ValueId, dtype: DType, rows: usize) -> ValueId {
        let cols = self.b.width(x);
        let weight = self.weight(dtype, rows, cols);
        let bias = self.b.weight(Weight::from_f32("bias", 1, rows, &vec![0.1; rows])).unwrap();
        self.b.linear(x, weight, Some(bias)).unwrap()
    }
}

fn graph(shape: &Shape, dtype: DType, layers: usize) -> Graph {
    let mut m = Maker { b: GraphBuilder::new(), blocks: Vec::new() };
    let head = m.weight(DType::Q6_K, shape.vocab, shape.hidden);
    m.weight(dtype, shape.feed_forward, shape.hidden);
    let rope = Arc::new(RopeTable::new(shape.head_dim, 1e6, &RopeScaling::None, RopePairs::Halves).unwrap());
    let mut x = m.b.embed(head, 50.0).unwrap();
    for layer in 0..layers {
        let h = m.norm(x, shape.hidden);
        let [q, k, v] = [shape.heads, shape.kv_heads, shape.kv_heads].map(|heads| {
            let rows = heads * shape.head_dim;
            if shape.gemma { m.linear(h, dtype, rows) } else { m.biased(h, dtype, rows) }
        });
        let [q, k] = [q, k].map(|x| if shape.gemma { m.norm(x, shape.head_dim) } else { x });
        let [q, k] = [q, k].map(|x| m.b.rope(x, shape.head_dim, rope.clone()).unwrap());
        let window = (shape.gemma && layer % 6 != 5).then_some(1024);
        let cache = m.b.cache(shape.kv_heads, shape.head_dim, window).unwrap();
        m.b.kv_write(cache, k, v).unwrap();
        let a = m.b.attention(cache, q, 0.0625, None).unwrap();
        let a = m.linear(a, dtype, shape.hidden);
        let a = if shape.gemma { m.norm(a, shape.hidden) } else { a };
        x = m.b.add(x, a).unwrap();
        let h = m.norm(x, shape.hidden);
        let [gate, up] = [(); 2].map(|()| m.linear(h, dtype, shape.feed_forward));
        let kind = if shape.gemma { Activation::GeluTanh } else { Activation::Silu };
        let gate = m.b.activate(gate, kind).unwrap();
        let h = m.b.mul(gate, up).unwrap();
        let h = m.linear(h, dtype, shape.hidden);
        let h = if shape.gemma { m.norm(h, shape.hidden) } else { h };
        x = m.b.add(x, h).unwrap();
    }
    let x = m.b.select_outputs(x).unwrap();
    let x = m.norm(x, shape.hidden);
    let logits = m.b.linear(x, head, None).unwrap();
    m.b.finish(logits).unwrap()
}

/// A step of so many sequences with one token each, or of one with all.
/// Returns its seconds.
fn run(execution: &mut Execution, rows: usize, prompt: bool, past: usize, blocks: usize, top: usize) -> f64 {
    let groups = execution.graph().windows().len();
    let ids: Vec<u32> = (0..rows as u32).map(|i| i * 37 + 11).collect();
    let table = |sequence: usize| vec![(0..blocks).map(|i| (sequence * blocks + i) as u32).collect::<Vec<_>>(); groups];
    let tables: Vec<Vec<Vec<u32>>> = (0..if prompt { 1 } else { rows }).map(table).collect();
    let positions: Vec<u32> = (0..rows).map(|i| (if prompt { past + i } else { past }) as u32).collect();
    let spans: Vec<Span<'_>> = if prompt {
        vec![Span { rows: 0..rows, past, tables: &tables[0] }]
    } else {
        (0..rows).map(|i| Span { rows: i..i + 1, past, tables: &tables[i] }).collect()
    };
    let outputs: Vec<u32> = if prompt { vec![rows as u32 - 1] } else { (0..rows as u32).collect() };
    let step = Step { ids: &ids, positions: &positions, spans: &spans, outputs: &outputs };
    let begin = Instant::now();
    execution.run_top(&step, &vec![top; outputs.len()]).expect("a step");
    let seconds = begin.elapsed().as_secs_f64();
    let (logits, kept) = execution.logits_mut(outputs.len());
    let mut rows = logits.chunks_exact(logits.len() / kept.len()).zip(kept);
    assert!(
        rows.all(|(row, kept)| match kept.is_empty() {
            true => row.iter().all(|logit| logit.is_finite()),
            false => kept.iter().all(|id| row[*id as usize].is_finite()),
        }),
        "logits are not finite"
    );
    seconds
}

/// Times the variants of every kernel in steps, and prints them, the fastest of each kernel first.
fn time_variants(vulkan: &Vulkan, step: &mut dyn FnMut()) {
    let mut times: BTreeMap<String, BTreeMap<Variant, f64>> = BTreeMap::new();
    let mut place = 0;
    loop {
        vulkan.try_variant(Some(place));
        step();
        vulkan.profile();
        for _ in 0..5 {
            step();
            for time in vulkan.profile() {
                let Some((kernel, variant)) = time.choice else { continue };
                let us = time.total_ns / time.runs as f64 / 1e3;
                let own = times.entry(kernel).or_default().entry(variant).or_insert(us);
                *own = own.min(us);
            }
        }
        place += 1;
        if place >= vulkan.variants() {
            break;
        }
    }
    vulkan.try_variant(None);
    for (kernel, variants) in times {
        println!("  {kernel}");
        let mut variants: Vec<_> = variants.into_iter().collect();
        variants.sort_by(|a, b| a.1.total_cmp(&b.1));
        variants.into_iter().for_each(|(variant, us)| println!("  {us:>9.2} us  {variant}"));
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let mut flag = |name: &str, value: bool| -> Option<String> {
        let at = words.iter().position(|word| word == name)?;
        let found = words.get(at + 1).cloned().unwrap_or_default();
        words.drain(at..(at + 1 + usize::from(value)).min(words.len()));
        Some(found)
    };
    let variants = flag("--variants", false).is_some();
    let profile = flag("--profile", false).is_some() || variants;
    let context: usize = flag("--context", true).map_or(Ok(512), |text| text.parse())?;
    // Largest logits of each row that leave the device; 0 is all.
    let top: usize = flag("--top", true).map_or(Ok(1), |text| text.parse())?;
    let kv = match flag("--kv", true).as_deref() {
        None | Some("f16") => KvType::F16,
        Some("q8") => KvType::Q8,
        Some(_) => return Err("unknown cache: f16, q8".into()),
    };
    let layers = flag("--layers", true).map(|text| text.parse::<usize>()).transpose()?;
    let device = flag("--device", true).map(|text| text.parse::<usize>()).transpose()?;
    let (name, dtype) = (words.first().ok_or("a shape is missing")?, words.get(1).ok_or("a type is missing")?);
    let shape = SHAPES.iter().find(|shape| shape.name == name).ok_or("unknown shape: 4b, 27b, 7b")?;
    let dtype = DType::all().find(|own| own.name().eq_ignore_ascii_case(dtype)).ok_or("unknown type")?;
    let layers = layers.unwrap_or(shape.layers);

    let without = std::env::var("UNICORN_VULKAN_WITHOUT").unwrap_or_default();
    let without = without.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    let submit_ms = std::env::var("UNICORN_VULKAN_SUBMIT_MS").ok().map(|text| text.parse()).transpose()?;
    let submit_bound = submit_ms.map(Duration::from_millis);
    let vulkan =
        Vulkan::open(VulkanOptions { index: device, without, profile, submit_bound, ..VulkanOptions::default() })?;
    let roof = vulkan.measure()?.read_bytes_per_s;
    println!("{:?}\nreads {:.0} GB/s", vulkan.capabilities(), roof / 1e9);
    let graph = Arc::new(graph(shape, dtype, layers));
    let asked: Vec<(usize, bool)> = words[2..]
        .iter()
        .map(|word| word.strip_prefix('p').map_or((word.as_str(), false), |rest| (rest, true)))
        .map(|(rows, prompt)| Ok::<_, std::num::ParseIntError>((rows.parse()?, prompt)))
        .collect::<Result<_, _>>()?;
    let rows = asked.iter().map(|(rows, _)| *rows).max().unwrap_or(1);
    let sequences = asked.iter().filter(|(_, prompt)| !prompt).map(|(rows, _)| *rows).max().unwrap_or(1);
    let room = context + rows;
    let options = PlanOptions {
        context: Some(room),
        model_context: room,
        sequences,
        step_tokens: rows,
        step_outputs: sequences,
        kv,
        // Windows are given whole contexts here, so that one table serves all.
        kv_bytes: Some(u64::MAX / 4),
        ..PlanOptions::default()
    };
    let plan = plan(&graph, &[&vulkan as &dyn Device], &options)?;
    let bytes = plan.bytes[0].read_per_token as f64;
    let begin = Instant::now();
    let mut execution = plan.compile(graph, &[&vulkan as &dyn Device], &mut |_, _| ())?;
    println!(
        "{} {dtype}, {layers} layers: {:.2} GB a step, packed in {:.1?}",
        shape.name,
        bytes / 1e9,
        begin.elapsed()
    );
    let blocks = room.div_ceil(KV_BLOCK_TOKENS);
    for (rows, prompt) in asked {
        let past = if prompt { 0 } else { context };
        for _ in 0..3 {
            run(&mut execution, rows, prompt, past, blocks, top);
        }
        vulkan.profile();
        let submits = vulkan.submits();
        let mut times: Vec<f64> = (0..20).map(|_| run(&mut execution, rows, prompt, past, blocks, top)).collect();
        times.sort_by(f64::total_cmp);
        let (median, least, most) = (times[times.len() / 2], times[0], times[times.len() - 1]);
        println!(
            "{}{rows} rows: {:.3} ms ({:.3} to {:.3}), {:.0} tok/s, {:.0} GB/s of weights, {:.1} % of the roof, {:.1} submits",
            if prompt { "prompt of " } else { "" },
            median * 1e3,
            least * 1e3,
            most * 1e3,
            rows as f64 / median,
            bytes / median / 1e9,
            100.0 * bytes / median / roof,
            (vulkan.submits() - submits) as f64 / times.len() as f64,
        );
        let kernels = vulkan.profile();
        if variants {
            time_variants(&vulkan, &mut || _ = run(&mut execution, rows, prompt, past, blocks, top));
            continue;
        }
        if profile {
            let total: f64 = kernels.iter().map(|time| time.total_ns).sum();
            println!("  {:>9.3} ms in kernels", total / 20.0 / 1e6);
        }
        for time in kernels {
            let each = time.total_ns / time.runs as f64 / 1e3;
            println!("  {each:>9.2} us x {:>6.1}  {}", time.runs as f64 / 20.0, time.kernel);
        }
    }
    Ok(())
}
