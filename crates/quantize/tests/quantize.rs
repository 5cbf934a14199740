//! From a source to files: types, values, rules, splits, interruptions and refusals.

use std::{fs, path::Path};

use files::gguf::{Gguf, Value};
use quantize::{
    Importance, ImportanceEntry, Mix, Plan, QuantizeError, Report, Rule, Source, SourceTensor, Step, WriteOptions,
    preset_names, write,
};
use tensor::{
    DType,
    blocks::{dequantize, random_blocks},
};

fn tensor(name: &str, dtype: DType, shape: &[usize], seed: u64) -> SourceTensor {
    let data = random_blocks(dtype, shape.iter().product(), seed, 0.02);
    SourceTensor::plain(name, dtype, shape.to_vec(), data.into())
}

/// A model of two layers, as far as a quantiser can tell.
fn model() -> Source {
    let mut tensors = vec![tensor("token_embd.weight", DType::BF16, &[96, 256], 1)];
    for layer in 0..2 {
        for (i, (kind, shape)) in [
            ("attn_norm", &[256][..]),
            ("attn_q", &[256, 256]),
            ("attn_v", &[64, 256]),
            ("attn_output", &[256, 256]),
            ("ffn_up", &[512, 256]),
            ("ffn_down", &[256, 512]),
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("blk.{layer}.{kind}.weight");
            tensors.push(tensor(&name, DType::BF16, shape, 10 * layer + i as u64 + 2));
        }
    }
    tensors.push(tensor("output_norm.weight", DType::F32, &[256], 50));
    let metadata = [("general.architecture", "toy"), ("general.name", "A model")];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), Value::from(value))).to_vec();
    Source { metadata, tensors, files: Vec::new() }
}

fn plan(source: &Source, preset: &str, rules: &[&str]) -> Result<Plan, QuantizeError> {
    let mut mix = Mix::preset(preset)?;
    for rule in rules {
        mix = mix.rule(Rule::parse(rule)?);
    }
    Plan::new(source, &mix, false)
}

fn run(source: &Source, plan: &Plan, target: &Path, options: &WriteOptions) -> Result<Report, QuantizeError> {
    write(source, plan, None, target, options, &mut |_, _| ())
}

fn decoded(dtype: DType, bytes: &[u8], elements: usize) -> Vec<f32> {
    let mut values = vec![0.0; elements];
    dequantize(dtype, bytes, &mut values).unwrap();
    values
}

fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn every_preset_makes_a_file_that_reads_back_near_the_source() {
    let (dir, source) = (tempfile::tempdir().unwrap(), model());
    for preset in preset_names() {
        let target = dir.path().join(format!("{preset}.gguf"));
        let plan = plan(&source, preset, &[]).unwrap();
        let report = run(&source, &plan, &target, &WriteOptions::default()).unwrap();
        let file = Gguf::open(&target).unwrap();
        assert_eq!(file.metadata().str("general.name").unwrap(), "A model");
        assert_eq!(report.file_bytes, fs::metadata(&target).unwrap().len(), "{preset}");
        assert_eq!(file.tensors().iter().map(|info| info.data.len() as u64).sum::<u64>(), plan.bytes(&source));
        for (tensor, info) in source.tensors.iter().zip(file.tensors()) {
            assert_eq!((&tensor.name, &tensor.shape), (&info.name, &info.shape));
            let want = decoded(tensor.dtype, &tensor.data, tensor.elements());
            let got = decoded(info.dtype, &info.data, info.elements());
            let power: f64 = want.iter().map(|x| f64::from(*x).powi(2)).sum();
            let error: f64 = want.iter().zip(&got).map(|(x, y)| f64::from(x - y).powi(2)).sum();
            let (norm, bits) = (tensor.shape.len() == 1, 8.0 * info.data.len() as f64 / info.elements() as f64);
            // Six decibels a bit, less what blocks of few bits give away.
            let most = if norm { 0.0 } else { power * 10f64.powf(-(5.0 * bits - 7.0).min(40.0) / 10.0) };
            assert!(error <= most, "{preset}, {}: {error:e} of {power:e} at {bits} bits", tensor.name);
        }
    }
}

#[test]
fn rules_go_before_the_preset_and_the_first_wins() {
    let source = model();
    let rules = [r"blk\.0\..*=q8_0", r"blk\.(0|1)\.ffn_.*=Q5_K"];
    let plan = plan(&source, "q4_0", &rules).unwrap();
    let types: Vec<_> = source.tensors.iter().zip(&plan.tensors).map(|(t, p)| (t.name.as_str(), p.dtype)).collect();
    for (name, want) in [
        ("blk.0.attn_q.weight", DType::Q8_0),
        ("blk.0.ffn_up.weight", DType::Q8_0),
        ("blk.1.ffn_up.weight", DType::Q5_K),
        ("blk.1.attn_q.weight", DType::Q4_0),
        ("blk.0.attn_norm.weight", DType::F32),
        ("token_embd.weight", DType::Q6_K),
    ] {
        assert!(types.contains(&(name, want)), "{name}: {types:?}");
    }
}

#[test]
fn rules_that_mean_nothing_are_refused() {
    let source = model();
    for (rule, unmatched) in [
        (r"blk\.7\..*=q8_0", true),
        (r".*_norm\.weight=q8_0", true),
        ("ffn_up=q8_0", true),
        ("(=q8_0", false),
        ("ffn=q9", false),
        ("ffn", false),
        (".*=iq2_xxs", false),
    ] {
        match plan(&source, "q4_0", &[rule]) {
            Err(QuantizeError::Unmatched { .. }) => assert!(unmatched, "{rule}"),
            Err(QuantizeError::Rule { .. }) => assert!(!unmatched, "{rule}"),
            other => panic!("{rule}: {other:?}"),
        }
    }
    assert!(matches!(Mix::preset("q4_x"), Err(QuantizeError::UnknownPreset { .. })));
}

#[test]
fn rows_that_no_block_divides_fall_back_and_say_so() {
    let shapes = [(256, DType::Q4_K, None), (96, DType::Q5_0, Some(DType::Q4_K)), (50, DType::F16, Some(DType::Q4_K))];
    for (cols, dtype, instead_of) in shapes {
        let source =
            Source { tensors: vec![tensor("blk.0.ffn_up.weight", DType::F32, &[4, cols], 1)], ..Source::default() };
        let plan = plan(&source, "balanced", &[]).unwrap();
        assert_eq!((plan.tensors[0].dtype, plan.tensors[0].instead_of), (dtype, instead_of), "{cols}");
    }
}

#[test]
fn a_split_set_is_one_model() {
    let (dir, source) = (tempfile::tempdir().unwrap(), model());
    let options = WriteOptions { split_bytes: Some(100_000), ..WriteOptions::default() };
    let report = run(&source, &plan(&source, "q8_0", &[]).unwrap(), &dir.path().join("m.gguf"), &options).unwrap();
    assert!(report.files.len() > 2, "{:?}", report.files);
    assert!(report.files[0].ends_with(&format!("m-00001-of-{:05}.gguf", report.files.len())));
    let set = Gguf::open(report.files[1].as_ref()).unwrap();
    assert_eq!(set.tensors().len(), source.tensors.len());
    assert_eq!(set.metadata().str("general.name").unwrap(), "A model");
    assert_eq!(files(dir.path()).len(), report.files.len(), "temporary files are left");
    // And a set is a source like any other.
    let again = Source::gguf(&set);
    let target = dir.path().join("again.gguf");
    run(&again, &plan(&again, "q4_0", &[]).unwrap(), &target, &WriteOptions::default()).unwrap();
    assert!(Gguf::open(&target).unwrap().metadata().get("split.count").is_none());
}

#[test]
fn broken_weights_leave_no_file() {
    let dir = tempfile::tempdir().unwrap();
    for (preset, bad) in
        [("q4_k_m", f32::NAN), ("q8_0", f32::INFINITY), ("f32", f32::NAN), ("f16", 1e6), ("bf16", f32::INFINITY)]
    {
        let mut source = model();
        let mut values = vec![0.5f32; 512 * 256];
        values[777] = bad;
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let broken = SourceTensor {
            step: Step::Affine { add: 0.0, scale: 1.0 },
            ..SourceTensor::plain("blk.1.ffn_up.weight", DType::F32, vec![512, 256], data.into())
        };
        source.tensors[11] = broken;
        let result =
            run(&source, &plan(&source, preset, &[]).unwrap(), &dir.path().join("m.gguf"), &WriteOptions::default());
        let Err(QuantizeError::Weight { tensor, reason }) = result else { panic!("{preset}: {result:?}") };
        assert_eq!(tensor, "blk.1.ffn_up.weight");
        assert!(reason.contains("7"), "{reason}");
        assert_eq!(files(dir.path()), [""; 0], "{preset}");
    }
}

#[test]
fn weights_that_are_only_copied_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    // A scale of NaN in the second block of 32 (a 16-bit scale, then 32 bytes), a norm that holds infinity, and F16.
    let mut scale = random_blocks(DType::Q8_0, 512 * 256, 3, 0.02);
    scale[34..36].copy_from_slice(&0x7e00u16.to_le_bytes());
    let mut norm = random_blocks(DType::F32, 256, 3, 0.02);
    norm[40..44].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let mut half = random_blocks(DType::F16, 512 * 256, 3, 0.02);
    half[100..102].copy_from_slice(&0x7e00u16.to_le_bytes());
    for (preset, name, dtype, shape, bytes) in [
        ("q8_0", "blk.1.ffn_up.weight", DType::Q8_0, vec![512, 256], scale),
        ("q8_0", "output_norm.weight", DType::F32, vec![256], norm),
        ("f16", "blk.1.ffn_up.weight", DType::F16, vec![512, 256], half),
    ] {
        let source = Source { tensors: vec![SourceTensor::plain(name, dtype, shape, bytes.into())], ..model() };
        let plan = plan(&source, preset, &[]).unwrap();
        let result = run(&source, &plan, &dir.path().join("m.gguf"), &WriteOptions::default());
        let Err(QuantizeError::Weight { tensor, .. }) = result else { panic!("{name} as {dtype}: {result:?}") };
        assert_eq!(tensor, name);
        assert_eq!(files(dir.path()), [""; 0]);
    }
}

#[test]
fn an_interrupted_run_goes_on_and_its_bytes_are_checked() {
    let (dir, source) = (tempfile::tempdir().unwrap(), model());
    let (target, plan) = (dir.path().join("m.gguf"), plan(&source, "q4_k_m", &[]).unwrap());
    run(&source, &plan, &target, &WriteOptions::default()).unwrap();
    let want = fs::read(&target).unwrap();
    // What a killed run leaves: the files under their temporary names. A second directory has what one run of each
    // stage leaves, made by stopping before the rename: here, by doing the rename backwards with its journal.
    let (partial, journal) = (dir.path().join(".m.gguf.partial"), dir.path().join(".m.gguf.journal"));
    let journal_of_all = {
        fs::remove_file(&target).unwrap();
        let mut left = None;
        // The journal is read while the run is under way: at the end of the work and before the rename.
        write(
            &source,
            &plan,
            None,
            &target,
            &WriteOptions { threads: Some(1), ..WriteOptions::default() },
            &mut |done, total| {
                if done == total
                    && let Ok(text) = fs::read_to_string(&journal)
                {
                    left = Some(text);
                }
            },
        )
        .unwrap();
        left.expect("a journal while it runs")
    };
    assert_eq!(journal_of_all.lines().count(), 1 + source.tensors.len());
    // All done but the rename; half of it done; one tensor damaged; the journal of something else.
    let half: String = journal_of_all.lines().take(6).map(|line| format!("{line}\n")).collect();
    let other = journal_of_all.replacen(&journal_of_all[..16], "0123456789abcdef", 1);
    for (text, damage, resumed) in [
        (&journal_of_all, false, source.tensors.len()),
        (&half, false, 5),
        (&journal_of_all, true, source.tensors.len() - 1),
        (&other, false, 0),
    ] {
        let mut bytes = want.clone();
        if damage {
            let last = bytes.len() - 2000;
            bytes[last] ^= 1;
        }
        fs::remove_file(&target).unwrap();
        fs::write(&partial, bytes).unwrap();
        fs::write(&journal, text).unwrap();
        let report = run(&source, &plan, &target, &WriteOptions::default()).unwrap();
        assert_eq!(report.resumed, resumed);
        assert!(fs::read(&target).unwrap() == want);
        assert_eq!(files(dir.path()), ["m.gguf"]);
    }
}

#[test]
fn what_exists_is_replaced_only_when_asked_and_the_source_never() {
    let (dir, source) = (tempfile::tempdir().unwrap(), model());
    let (target, plan) = (dir.path().join("m.gguf"), plan(&source, "q8_0", &[]).unwrap());
    run(&source, &plan, &target, &WriteOptions::default()).unwrap();
    let before = fs::read(&target).unwrap();
    assert!(matches!(run(&source, &plan, &target, &WriteOptions::default()), Err(QuantizeError::Exists { .. })));
    let replace = WriteOptions { replace: true, ..WriteOptions::default() };
    let own = Source::gguf(&Gguf::open(&target).unwrap());
    let own_plan = Plan::new(&own, &Mix::preset("q4_0").unwrap(), false).unwrap();
    assert!(matches!(run(&own, &own_plan, &target, &replace), Err(QuantizeError::Same { .. })));
    assert!(fs::read(&target).unwrap() == before);
    run(&source, &plan, &target, &replace).unwrap();
    let nowhere = dir.path().join("none/m.gguf");
    assert!(matches!(run(&source, &plan, &nowhere, &replace), Err(QuantizeError::Io { .. })));
}

#[test]
fn a_source_that_changes_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut source, stamp) = (model(), dir.path().join("weights"));
    fs::write(&stamp, "1").unwrap();
    source.files.push(stamp.clone());
    let plan = plan(&source, "q4_0", &[]).unwrap();
    let result = write(&source, &plan, None, &dir.path().join("m.gguf"), &WriteOptions::default(), &mut |_, _| {
        fs::write(&stamp, "longer").unwrap();
    });
    assert!(matches!(result, Err(QuantizeError::Changed { .. })), "{result:?}");
    assert_eq!(files(dir.path()), ["weights"]);
}

#[test]
fn a_file_that_cannot_be_made_is_an_error_and_leaves_nothing() {
    // Longer than file systems allow once it has its temporary ending.
    let (dir, source) = (tempfile::tempdir().unwrap(), model());
    let target = dir.path().join("x".repeat(250) + ".gguf");
    let result = run(&source, &plan(&source, "q4_0", &[]).unwrap(), &target, &WriteOptions::default());
    assert!(matches!(result, Err(QuantizeError::Io { .. })));
    assert_eq!(files(dir.path()), [""; 0]);
    // A journal that cannot be written, as on a full disk: what was made before it goes.
    fs::create_dir(dir.path().join(".m.gguf.journal")).unwrap();
    let result =
        run(&source, &plan(&source, "q4_0", &[]).unwrap(), &dir.path().join("m.gguf"), &WriteOptions::default());
    assert!(matches!(result, Err(QuantizeError::Io { .. })));
    assert_eq!(files(dir.path()), [".m.gguf.journal"]);
}

#[test]
fn importance_survives_both_formats_and_guides() {
    let (dir, source) = (tempfile::tempdir().unwrap(), model());
    let values: Vec<f32> = (0..256).map(|i| if i % 16 == 0 { 4000.0 } else { 1.0 + (i % 5) as f32 }).collect();
    let entry = ImportanceEntry { values: values.clone(), count: 40 };
    let importance = Importance {
        datasets: vec!["text".to_owned()],
        chunks: 4,
        chunk_tokens: 10,
        entries: [("blk.0.attn_q.weight".to_owned(), entry)].into(),
        ..Importance::default()
    };
    for name in ["i.gguf", "i.dat"] {
        let path = dir.path().join(name);
        importance.write(&path).unwrap();
        let read = Importance::read(&path).unwrap();
        let got = &read.entries["blk.0.attn_q.weight"];
        let scale = values[0] / got.values[0];
        assert!(got.values.iter().zip(&values).all(|(a, b)| (a * scale - b).abs() < 1e-3 * b), "{name}");
        assert_eq!((read.chunks, &read.datasets), (4, &importance.datasets), "{name}");
    }
    let plan = plan(&source, "q4_0", &[]).unwrap();
    let weighted_error = |importance: Option<&Importance>, name: &str| {
        let target = dir.path().join(name);
        write(&source, &plan, importance, &target, &WriteOptions::default(), &mut |_, _| ()).unwrap();
        let (file, tensor) = (Gguf::open(&target).unwrap(), &source.tensors[2]);
        let info = file.tensor(&tensor.name).unwrap();
        let want = decoded(tensor.dtype, &tensor.data, tensor.elements());
        let got = decoded(info.dtype, &info.data, info.elements());
        let columns = values.iter().cycle();
        want.iter().zip(&got).zip(columns).map(|((x, y), a)| f64::from(*a) * f64::from(x - y).powi(2)).sum::<f64>()
    };
    assert!(weighted_error(Some(&importance), "with.gguf") < weighted_error(None, "without.gguf"));
    let bytes = fs::read(dir.path().join("i.dat")).unwrap();
    for cut in [0, 3, 10, 40, 200] {
        fs::write(dir.path().join("cut.dat"), &bytes[..cut]).unwrap();
        assert!(
            matches!(Importance::read(&dir.path().join("cut.dat")), Err(QuantizeError::Importance { .. })),
            "{cut}"
        );
    }
}

#[test]
fn memory_gets_the_bytes_that_a_file_gets() {
    let (dir, source) = (tempfile::tempdir().unwrap(), model());
    let (plan, target) = (plan(&source, "q4_k_m", &[]).unwrap(), dir.path().join("model.gguf"));
    let options = WriteOptions { threads: Some(3), ..WriteOptions::default() };
    let written = run(&source, &plan, &target, &options).unwrap();
    let (bytes, packed) = quantize::pack(&source, &plan, None, &options, &mut |_, _| ()).unwrap();
    assert!(*bytes == fs::read(&target).unwrap());
    assert_eq!((packed.file_bytes, packed.threads), (written.file_bytes, 3));
    assert_eq!(packed.file_bytes, plan.file_bytes(&source).unwrap());
    assert!(packed.files.is_empty());
}

#[test]
fn short_memory_means_fewer_threads() {
    let (dir, source) = (tempfile::tempdir().unwrap(), model());
    let plan = plan(&source, "q8_0", &[]).unwrap();
    // A thread holds a piece of 2^17 weights, three times four bytes each.
    for (memory_bytes, threads) in [(1, 1), (4 << 20, 2), (1 << 30, 5)] {
        let options = WriteOptions {
            threads: Some(5),
            memory_bytes: Some(memory_bytes),
            replace: true,
            ..WriteOptions::default()
        };
        assert_eq!(run(&source, &plan, &dir.path().join("model.gguf"), &options).unwrap().threads, threads);
    }
}
