//! Collecting an importance matrix: a text is run, and the squares of what meets each column of each matrix are summed.

use quantize::{Importance, ImportanceEntry};

use crate::{Engine, EngineError};

impl Engine {
    /// Collects over consecutive windows of `window` ids, each run alone. Load with [`crate::LoadOptions::inputs`], and
    /// with a chunk and outputs of `window` at least. `progress` hears (windows done, windows in all).
    ///
    /// # Errors
    /// Where the model was loaded without its inputs or with a smaller chunk, the text is shorter than a window, or a
    /// step fails.
    pub fn importance(
        &mut self,
        ids: &[u32],
        window: usize,
        windows: Option<usize>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Importance, EngineError> {
        if window == 0 || ids.len() < window {
            return Err(EngineError::TextTooShort { tokens: ids.len(), window });
        }
        let limits = self.plan().limits;
        if limits.tokens < window || limits.outputs < window {
            let expected = "no more than a step holds";
            return Err(EngineError::Setting { name: "window", value: window.to_string(), expected });
        }
        let names: Vec<String> = self.scheduler.execution.graph().taps().iter().map(|(name, _)| name.clone()).collect();
        let names: Vec<String> = names.into_iter().filter(|name| name.ends_with(".weight")).collect();
        if names.is_empty() {
            return Err(EngineError::Unusable("the model was loaded without the inputs of its matrices".to_owned()));
        }
        let count = (ids.len() / window).min(windows.unwrap_or(usize::MAX)).max(1);
        let bos = self.tokenizer().ok().filter(|tokenizer| tokenizer.add_bos()).and_then(|tokenizer| tokenizer.bos());
        let mut sums: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
        for (index, ids) in ids.chunks_exact(window).take(count).enumerate() {
            let ids: Vec<u32> = match bos {
                Some(bos) => std::iter::once(bos).chain(ids[..window - 1].iter().copied()).collect(),
                None => ids.to_vec(),
            };
            self.run_alone(&ids, window, true, &mut |_, _| ())?;
            for (name, sums) in names.iter().zip(&mut sums) {
                let rows = self.scheduler.execution.tap_rows(name, window).unwrap_or_default();
                add_squares(rows, rows.len() / window, sums);
            }
            progress(index + 1, count);
        }
        let rows = (count * window) as u64;
        let entry = |sums: Vec<f64>| ImportanceEntry { values: sums.iter().map(|s| *s as f32).collect(), count: rows };
        Ok(Importance {
            chunks: u32::try_from(count).unwrap_or(u32::MAX),
            chunk_tokens: u32::try_from(window).unwrap_or(u32::MAX),
            entries: names.into_iter().zip(sums.into_iter().map(entry)).collect(),
            ..Importance::default()
        })
    }
}

fn add_squares(rows: &[f32], width: usize, sums: &mut Vec<f64>) {
    sums.resize(width, 0.0);
    for row in rows.chunks_exact(width.max(1)) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
}
