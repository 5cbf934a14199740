//! The mix of types that a target asks for, by what each group of tensors does to the model.
//!
//! What packing a tensor does to the model's distributions is taken to be its loss (the share of its power that is
//! lost) times the sensitivity of its group. Losses are measured for every tensor and type; a sensitivity is the
//! divergence of a model in which only that group is packed, over the loss there. Groups are the tensors of one kind in
//! a third of the layers. Divergences are taken to add up, and what comes of the search is measured again.

use std::collections::BTreeMap;

use quantize::{Choice, Goal, Importance, Plan, Source, WriteOptions, choices, search};

use crate::{Arithmetic, Engine, EngineError, LoadOptions, ModelFile, compare};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The least divergence in a file of so many bytes.
    Bytes(u64),
    /// The smallest file whose mean divergence is at most this, nats.
    Divergence(f64),
}

/// How divergences are measured.
#[derive(Clone, Debug)]
pub struct SearchOptions {
    /// Tokens of a window; `load` allows for as many.
    pub window: usize,
    /// Windows to run at most.
    pub windows: usize,
    /// How models are loaded; products are computed in `f32` whatever it says, so that only weights differ.
    pub load: LoadOptions,
    /// Threads and memory of packing.
    pub write: WriteOptions,
}

/// What packing a group does to the model.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Sensitivity {
    /// Kind of tensor and third of the layers, as `ffn_down 0`.
    pub group: String,
    /// The share of the group's power that was lost, its tensors added up.
    pub loss: f64,
    /// What that made of the model: mean divergence, nats.
    pub kl: f64,
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The types.
    pub plan: Plan,
    /// What was measured of each group.
    pub sensitivities: Vec<Sensitivity>,
    /// The divergence that the sensitivities foretell, nats.
    pub foretold: f64,
    /// The divergence that was measured.
    pub kl: f64,
}

/// A search under way.
struct Search<'a> {
    file: &'a ModelFile,
    source: &'a Source,
    importance: Option<&'a Importance>,
    ids: &'a [u32],
    options: &'a SearchOptions,
    reference: Engine,
}

/// Tries to come near a divergence by measuring a mix and asking for more or less.
const TRIES: usize = 5;

impl ModelFile {
    /// The mix of types that meets a target best, over the text of `ids`. `source` is the model's own, of
    /// [`ModelFile::quantize_source`]. `progress` hears (measurements done, all that are expected).
    ///
    /// # Errors
    /// Where no mix meets the target, the text is shorter than a window, or a model cannot be packed or run.
    pub fn search(
        &self,
        source: &Source,
        importance: Option<&Importance>,
        target: Target,
        ids: &[u32],
        options: &SearchOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Found, EngineError> {
        let load = LoadOptions { arithmetic: Arithmetic::F32, ..options.load.clone() };
        let options = &SearchOptions { load, ..options.clone() };
        let reference = Engine::load(self, &options.load, &mut |_, _| ())?;
        let mut search = Search { file: self, source, importance, ids, options, reference };
        let mut choices = choices(source, importance, &options.write)?;
        let sensitivities = search.sensitivities(&mut choices, progress)?;
        search.settle(&choices, sensitivities, target)
    }
}

impl Search<'_> {
    /// The divergence of a mix.
    fn measure(&mut self, plan: &Plan) -> Result<f64, EngineError> {
        let SearchOptions { window, windows, load, write } = self.options;
        let (file, _) = self.file.packed(self.source, plan, self.importance, write, &mut |_, _| ())?;
        let mut model = Engine::load(&file, load, &mut |_, _| ())?;
        let found = compare(&mut self.reference, &mut model, self.ids, *window, Some(*windows), &mut |_, _| ())?;
        Ok(found.kl_mean)
    }

    /// Packs one group at a time, in the middle of its choices, and turns the costs of all choices from losses into
    /// divergences.
    fn sensitivities(
        &mut self,
        choices: &mut [Vec<Choice>],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<Sensitivity>, EngineError> {
        let untouched = Plan::unchanged(self.source);
        let mut measured = Vec::new();
        let groups = groups(self.source, choices);
        for (done, (group, members)) in groups.iter().enumerate() {
            progress(done as u64, groups.len() as u64);
            let (mut plan, mut loss) = (untouched.clone(), 0.0);
            for &member in members {
                let own = &choices[member];
                // Fewer bits than most files have, so that what is measured stands out.
                let probe = &own[own.len() / 3];
                plan.tensors[member] = probe.planned.clone();
                loss += probe.cost;
            }
            let kl = self.measure(&plan)?;
            let factor = if loss > 0.0 { kl / loss } else { 0.0 };
            for &member in members {
                choices[member].iter_mut().for_each(|choice| choice.cost *= factor);
            }
            measured.push(Sensitivity { group: group.clone(), loss, kl });
        }
        progress(groups.len() as u64, groups.len() as u64);
        Ok(measured)
    }

    /// Searches, measures, and where a divergence is asked for searches again for what it takes.
    fn settle(
        &mut self,
        choices: &[Vec<Choice>],
        sensitivities: Vec<Sensitivity>,
        target: Target,
    ) -> Result<Found, EngineError> {
        // The head of the file counts: its size hardly depends on the types.
        let unchanged = Plan::unchanged(self.source);
        let head = unchanged.file_bytes(self.source)? - unchanged.bytes(self.source);
        let size = |at: &[usize]| choices.iter().zip(at).map(|(own, at)| own[*at].bytes).sum::<u64>();
        let cost = |at: &[usize]| choices.iter().zip(at).map(|(own, at)| own[*at].cost).sum::<f64>();
        let mut found = |at: &[usize]| {
            let plan = Plan::of_choices(choices, at);
            let kl = self.measure(&plan)?;
            Ok(Found { plan, sensitivities: sensitivities.clone(), foretold: cost(at), kl })
        };
        let most = match target {
            Target::Bytes(bytes) => {
                let at = search(choices, Goal::Bytes(bytes.saturating_sub(head))).ok_or_else(|| {
                    let least = head + size(&vec![0; choices.len()]);
                    EngineError::Unreachable(format!("the smallest file takes {least} bytes, and {bytes} are allowed"))
                })?;
                return found(&at);
            }
            Target::Divergence(most) => most,
        };
        let (mut goal, mut best, mut least) = (most, None::<(u64, Found)>, f64::INFINITY);
        for _ in 0..TRIES {
            // The finest mix is measured before a goal is given up: what is foretold may be too much.
            let at =
                search(choices, Goal::Cost(goal)).unwrap_or_else(|| choices.iter().map(|own| own.len() - 1).collect());
            let next = found(&at)?;
            least = least.min(next.kl);
            // What was foretold is so far off; a little below, since steps are coarse.
            goal *= 0.97 * (most / next.kl.max(f64::MIN_POSITIVE)).clamp(0.05, 20.0);
            let near = next.kl > 0.9 * most;
            if next.kl <= most && best.as_ref().is_none_or(|(bytes, _)| size(&at) < *bytes) {
                best = Some((size(&at), next));
                if near {
                    break;
                }
            }
        }
        let unreachable =
            || EngineError::Unreachable(format!("no mix comes under {most} nats; the nearest has {least:.5}"));
        best.map(|(_, found)| found).ok_or_else(unreachable)
    }
}

/// The tensors of one kind in a third of the layers, by name; what has no choice is in none.
fn groups(source: &Source, choices: &[Vec<Choice>]) -> BTreeMap<String, Vec<usize>> {
    let parts = |name: &str| {
        let (layer, kind) = name.strip_prefix("blk.")?.split_once('.')?;
        Some((layer.parse::<usize>().ok()?, kind.strip_suffix(".weight").unwrap_or(kind).to_owned()))
    };
    let layers = source.tensors.iter().filter_map(|tensor| parts(&tensor.name)).map(|(layer, _)| layer + 1).max();
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, tensor) in source.tensors.iter().enumerate().filter(|(index, _)| choices[*index].len() > 1) {
        let group = match parts(&tensor.name) {
            Some((layer, kind)) => format!("{kind} {}", 3 * layer / layers.unwrap_or(1)),
            None => tensor.name.clone(),
        };
        groups.entry(group).or_default().push(index);
    }
    groups
}

#[cfg(test)]
mod tests {
    use quantize::{PlannedTensor, SourceTensor};
    use tensor::DType;

    use super::*;

    #[test]
    fn groups_are_kinds_in_thirds_of_the_layers() {
        let names = ["token_embd.weight", "blk.0.ffn_up.weight", "blk.1.ffn_up.weight", "blk.2.ffn_up.weight"];
        let tensor = |name: &str| SourceTensor::plain(name, DType::F16, vec![1, 256], vec![0; 512].into());
        let source = Source { tensors: names.map(tensor).to_vec(), ..Source::default() };
        let choice = Choice { planned: PlannedTensor { dtype: DType::F16, instead_of: None }, bytes: 1, cost: 0.0 };
        let two = vec![choice.clone(), choice.clone()];
        let found = groups(&source, &[two.clone(), two.clone(), vec![choice], two]);
        let want = [("ffn_up 0", vec![1]), ("ffn_up 2", vec![3]), ("token_embd.weight", vec![0])];
        assert_eq!(found, want.map(|(name, members)| (name.to_owned(), members)).into());
    }
}
