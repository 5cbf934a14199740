//! Loading holds a weight once: the pages of its file go as it is packed. A test of its own, as it reads what the whole
//! process has in memory.
#![cfg(target_os = "linux")]

use std::{fs::File, io::Write, sync::Arc};

use cpu::{Cpu, CpuOptions};
use graph::{GraphBuilder, PlanOptions, Weight};
use tensor::{Bytes, DType};

/// Bytes of the process in memory, now (`VmRSS`) or at most so far (`VmHWM`) (proc_pid_status(5)).
fn status_bytes(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel tells");
    value.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn a_table_is_never_in_memory_twice() {
    const ROWS: usize = 32 << 10;
    const COLS: usize = 1 << 10;
    const BYTES: usize = ROWS * COLS * 2;
    let path = std::env::temp_dir().join(format!("cpu-loading-{}", std::process::id()));
    let mut file = File::create(&path).unwrap();
    let row = vec![0x3f; 1 << 20];
    (0..BYTES >> 20).for_each(|_| file.write_all(&row).unwrap());
    let data = Bytes::map(&path).unwrap();
    std::fs::remove_file(&path).unwrap();

    let mut b = GraphBuilder::new();
    let table =
        b.weight(Weight { name: "table".to_owned(), dtype: DType::BF16, rows: ROWS, cols: COLS, data }).unwrap();
    let x = b.embed(table, 1.0).unwrap();
    let x = b.select_outputs(x).unwrap();
    let logits = b.linear(x, table, None).unwrap();
    let graph = Arc::new(b.finish(logits).unwrap());
    let cpu = Cpu::new(CpuOptions { threads: Some(2), isa: None }).unwrap();
    let options = PlanOptions { model_context: 8, step_tokens: 8, ..PlanOptions::default() };
    let plan = graph::plan(&graph, &[&cpu], &options).unwrap();

    let before = status_bytes("VmRSS");
    let execution = plan.compile(graph, &[&cpu], &mut |_, _| ()).unwrap();
    let (now, most) = (status_bytes("VmRSS"), status_bytes("VmHWM"));
    assert!(now >= before + BYTES, "the packed table is in memory: {before} before, {now} now");
    // Besides: what two threads have not let go of yet, and the arena of the step.
    assert!(most < before + BYTES + (24 << 20), "{most} at most, {before} before, a table of {BYTES}");
    drop(execution);
}
