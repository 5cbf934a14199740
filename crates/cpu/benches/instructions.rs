//! Instructions of the kernels, counted one by one, beside a recorded count: a machine whose times are noise still
//! catches a kernel that became slower.
//!
//! `cargo bench -p cpu --bench instructions` fails where a count is more than 3 % above `instructions.txt`; with
//! `-- --record` it writes that file. A child runs a small step under `ptrace`, instruction by instruction, which is the
//! only way to count AVX-512 without the processor's own counters: virtual machines often have none, and valgrind does
//! not know those instructions. Counts depend on the compiler, which `rust-toolchain.toml` pins, and hardly on anything
//! else: F32 is left out, whose panels are copied by an instruction of the C library that counts once a byte. They say
//! nothing of caches or of how many instructions run at once.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: instructions are counted on x86-64 under Linux only");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> std::process::ExitCode {
    counted::main()
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod counted {
    use std::{collections::BTreeMap, fmt::Write, process::ExitCode, ptr::null_mut, sync::Arc};

    use cpu::{Cpu, CpuOptions};
    use graph::{Arithmetic, Device, Execution, Graph, GraphBuilder, KvType, PlanOptions, Span, Step, Weight, plan};
    use tensor::{DType, blocks::random_blocks, encode::TYPES};

    /// How far above the recorded count a kernel may lie.
    const TOLERANCE: f64 = 0.03;
    const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

    /// A step that is run twice: its second run is counted.
    struct Case {
        name: String,
        isa: &'static str,
        graph: Arc<Graph>,
        rows: usize,
        past: usize,
        kv: KvType,
    }

    pub(super) fn main() -> ExitCode {
        stay_on_one_processor();
        let record = std::env::args().any(|arg| arg == "--record");
        let before = std::fs::read_to_string(RECORD).unwrap_or_default();
        let before: BTreeMap<&str, u64> = before
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, n)| Some((name, n.parse().ok()?)))
            .collect();
        let (mut text, mut slower) = (String::new(), 0);
        for case in cases() {
            let Some(count) = case.count() else { continue };
            let known = before.get(case.name.as_str()).copied();
            let change = known.map(|known| 100.0 * (count as f64 / known as f64 - 1.0));
            let worse = change.is_some_and(|change| change > 100.0 * TOLERANCE);
            let beside = change.map_or("not recorded".to_owned(), |change| format!("{change:+.1} %"));
            println!("{:<36} {count:>9} {beside}{}", case.name, if worse { " MORE" } else { "" });
            writeln!(text, "{} {count}", case.name).expect("text takes text");
            slower += usize::from(worse);
        }
        if record {
            std::fs::write(RECORD, text).expect("the record can be written");
        } else if slower > 0 {
            println!("{slower} kernels take more instructions than recorded; --record takes the counts of today");
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        // What a file can be made of; of IQ4_NL the kernel is that of IQ4_XS, and F32 is left out (above).
        let packed = TYPES.iter().copied().filter(|dtype| ![DType::F32, DType::IQ4_NL].contains(dtype)).collect();
        for (isa, types) in [("avx512", packed), ("avx2", vec![DType::Q4_0, DType::Q8_0, DType::Q4_K])] {
            for dtype in types {
                for rows in [1, 14] {
                    let (graph, kv) = (product(dtype), KvType::F16);
                    cases.push(Case { name: format!("{isa} {dtype} rows={rows}"), isa, graph, rows, past: 0, kv });
                }
            }
            for kv in [KvType::F16, KvType::Q8] {
                for (rows, past) in [(1, 100), (12, 40)] {
                    let name = format!("{isa} attention {kv:?} rows={rows} past={past}");
                    cases.push(Case { name, isa, graph: attention(), rows, past, kv });
                }
            }
        }
        cases
    }

    /// A weight of 32 rows and 256 columns, and activations of which one group in ten has an outlier.
    fn product(dtype: DType) -> Arc<Graph> {
        let (rows, cols) = (32, 256);
        let mut b = GraphBuilder::new();
        let x = table(&mut b, cols);
        let data = random_blocks(dtype, rows * cols, 3, 0.02).into();
        let w = b.weight(Weight { name: "w".into(), dtype, rows, cols, data }).expect("a weight");
        let y = b.linear(x, w, None).expect("the shapes fit");
        let y = b.select_outputs(y).expect("rows");
        Arc::new(b.finish(y).expect("a graph"))
    }

    /// Four query heads of 64 elements that share two of keys and values.
    fn attention() -> Arc<Graph> {
        let mut b = GraphBuilder::new();
        let (q, k, v) = (table(&mut b, 4 * 64), table(&mut b, 2 * 64), table(&mut b, 2 * 64));
        let cache = b.cache(2, 64, None).expect("a cache");
        b.kv_write(cache, k, v).expect("the shapes fit");
        let y = b.attention(cache, q, 0.125, None).expect("the shapes fit");
        let y = b.select_outputs(y).expect("rows");
        Arc::new(b.finish(y).expect("a graph"))
    }

    fn table(b: &mut GraphBuilder, width: usize) -> graph::ValueId {
        let element = |i: usize| (i as f32).sin() * if i % 160 == 77 { 40.0 } else { 1.0 };
        let input: Vec<f32> = (0..2 * width).map(element).collect();
        let table = b.weight(Weight::from_f32("input", 2, width, &input)).expect("a table");
        b.embed(table, 1.0).expect("a table")
    }

    impl Case {
        /// Instructions of its second run; `None`, with a line, where this machine cannot run or count it.
        fn count(&self) -> Option<u64> {
            let cpu = Cpu::new(CpuOptions { threads: Some(1), isa: Some(self.isa.to_owned()) });
            let Ok(cpu) = cpu else {
                println!("{:<36} skipped: no {} here", self.name, self.isa);
                return None;
            };
            let context = self.past + self.rows;
            let options = PlanOptions {
                context: Some(context),
                model_context: context,
                step_tokens: context,
                step_outputs: context,
                arithmetic: Arithmetic::Fast,
                kv: self.kv,
                ..PlanOptions::default()
            };
            let graph = self.graph.clone();
            let planned = plan(&graph, &[&cpu as &dyn Device], &options).expect("a plan");
            let mut run = planned.compile(graph, &[&cpu], &mut |_, _| ()).expect("it compiles");
            let table: Vec<u32> = (0..context.div_ceil(graph::KV_BLOCK_TOKENS) as u32).collect();
            let tables = vec![table; self.graph.windows().len()];
            if self.past > 0 {
                step(&mut run, 0, self.past, &tables);
            }
            step(&mut run, self.past, self.rows, &tables);
            traced(|| step(&mut run, self.past, self.rows, &tables)).or_else(|| {
                println!("{:<36} skipped: this system does not let a program be traced", self.name);
                None
            })
        }
    }

    fn step(run: &mut Execution, past: usize, rows: usize, tables: &[Vec<u32>]) {
        let (ids, positions): (Vec<u32>, Vec<u32>) = (0..rows as u32).map(|i| (i % 2, past as u32 + i)).unzip();
        let spans = [Span { rows: 0..rows, past, tables }];
        let outputs: Vec<u32> = (0..rows as u32).collect();
        run.run(&Step { ids: &ids, positions: &positions, spans: &spans, outputs: &outputs }).expect("it runs");
    }

    /// Keeps this process and its children on the processor it runs on: parent and child take turns, and a turn costs
    /// less there.
    fn stay_on_one_processor() {
        // SAFETY: the set is a plain array of bits of this function's own.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(libc::sched_getcpu().max(0) as usize, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
        }
    }

    /// Runs `work` in a child, instruction by instruction, between two signals it sends itself. This process has one
    /// thread, so the child has all that there is of it.
    fn traced(work: impl FnOnce()) -> Option<u64> {
        // SAFETY: one thread: whatever locks there are, nobody holds them in the child.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: plain system calls of the child on itself; `_exit` runs no destructor of the parent's things.
            unsafe {
                if libc::ptrace(libc::PTRACE_TRACEME, 0, null_mut::<u8>(), null_mut::<u8>()) != 0 {
                    libc::_exit(1);
                }
                libc::raise(libc::SIGSTOP);
                work();
                libc::raise(libc::SIGSTOP);
                libc::_exit(0);
            }
        }
        let mut count = 0;
        let mut status = 0;
        // SAFETY: system calls on the child that was started above, until it has ended.
        unsafe {
            if child < 0 || libc::waitpid(child, &raw mut status, 0) != child || !libc::WIFSTOPPED(status) {
                return None;
            }
            loop {
                libc::ptrace(libc::PTRACE_SINGLESTEP, child, null_mut::<u8>(), null_mut::<u8>());
                if libc::waitpid(child, &raw mut status, 0) != child || !libc::WIFSTOPPED(status) {
                    return None;
                }
                if libc::WSTOPSIG(status) != libc::SIGTRAP {
                    break;
                }
                count += 1;
            }
            libc::kill(child, libc::SIGKILL);
            libc::waitpid(child, &raw mut status, 0);
        }
        Some(count)
    }
}
