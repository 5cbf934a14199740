//! Files of choices that can be used, and those that cannot; a tuning on the first device there is.

use super::*;

fn choices() -> Choices {
    Choices::from([
        ("gemv Q4_0 64x64 by 1".to_owned(), Variant::Rows { rows: 2, ahead: 1, subgroups: 8, resident: 0 }),
        ("gemm_matrix Q4_0 64x64".to_owned(), Variant::Tile { tile: (64, 64), share: (32, 32) }),
    ])
}

#[test]
fn a_file_is_read_where_it_is_whole_and_of_these_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new").join("x.tuning");
    assert_eq!(read(&path, "a"), Ok(Choices::new()), "no file, no choices");
    write(&path, "a".to_owned(), &choices()).unwrap();
    assert_eq!(read(&path, "a"), Ok(choices()));
    assert!(read(&path, "b").unwrap_err().contains("another"));
    let whole = std::fs::read(&path).unwrap();
    let with = |from: &str, to: &str| {
        let text = String::from_utf8(whole.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        text.replace(from, to).into_bytes()
    };
    for damaged in [
        whole[..whole.len() / 2].to_vec(),
        vec![],
        b"\xff\x00".to_vec(),
        b"[1]".to_vec(),
        with("rows 2 ahead 1", "rows two"),
        with("rows 2 ahead", "rows 99999999999 ahead"),
        with("\"rows 2 ahead 1 subgroups 8 resident 0\"", "7"),
        vec![b' '; MOST_BYTES as usize + 1],
    ] {
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(read(&path, "a"), Err("is damaged"));
    }
}

fn measured(ns: f64, is_rule: bool) -> Measured {
    Measured { ns, bytes: 1000, ops: 2000, is_rule }
}

#[test]
fn the_fastest_is_chosen_where_it_is_worth_it() {
    if !matches!(crate::devices::vulkan_count(), Ok(1..)) {
        println!("skipped: no Vulkan device");
        return;
    }
    let vulkan = Vulkan::open(vulkan::VulkanOptions { index: Some(0), ..Default::default() }).unwrap();
    let [a, b, c] = [1, 2, 4].map(|rows| Variant::Rows { rows, ahead: 1, subgroups: 4, resident: 0 });
    let times = |list: [(Variant, f64, bool); 3]| list.map(|(v, ns, is_rule)| (v, measured(ns, is_rule))).into();
    let tuner = Tuner {
        vulkan: &vulkan,
        times: BTreeMap::from([
            ("slower".to_owned(), times([(a, 90.0, false), (b, 100.0, true), (c, 80.0, false)])),
            ("as fast".to_owned(), times([(a, 99.0, false), (b, 100.0, true), (c, 98.0, false)])),
            ("wrong".to_owned(), times([(a, 90.0, false), (b, 100.0, true), (c, 10.0, false)])),
        ]),
        excluded: BTreeSet::from([(vec![("wrong".to_owned(), c)], "it differs".to_owned())]),
    };
    let before = Choices::from([("as fast".to_owned(), c), ("of another model".to_owned(), c)]);
    let (kernels, choices) = tuner.chosen(Some(1e10), before);
    let want = [("of another model", c), ("slower", c), ("wrong", a)];
    assert_eq!(choices, want.map(|(kernel, variant)| (kernel.to_owned(), variant)).into());
    let slower = kernels.iter().find(|kernel| kernel.kernel == "slower").unwrap();
    assert_eq!((slower.rule_us, slower.chosen_us, slower.variants), (0.1, 0.08, 3));
    assert!(slower.percent_of_bandwidth.is_some_and(|percent| (percent - 125.0).abs() < 1e-6));
}
