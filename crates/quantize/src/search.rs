//! The best mix within a size, or the smallest within a cost, from what each type costs each tensor.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tensor::{DType, blocks::dequantize, encode::encode};

use crate::{
    Importance, Plan, PlannedTensor, QuantizeError, Source, SourceTensor, WriteOptions,
    mix::{is_matrix, kept},
    presets::fallback,
    source::decode,
};

/// The types that a search chooses from, by size.
const LADDER: [DType; 7] =
    [DType::Q2_K, DType::Q3_K, DType::IQ4_XS, DType::Q4_K, DType::Q5_K, DType::Q6_K, DType::Q8_0];

/// Rows of a tensor that are packed to learn what a type loses.
const ROWS: usize = 64;

/// A type that a tensor may get.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The type.
    pub planned: PlannedTensor,
    /// Bytes of the tensor then.
    pub bytes: u64,
    /// What is lost: the share of the tensor's power, until a caller multiplies it by what that does to the model.
    pub cost: f64,
}

/// What a search is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// The least cost in so many bytes of tensors.
    Bytes(u64),
    /// The fewest bytes at this cost.
    Cost(f64),
}

/// The choices of every tensor, smallest first: one without cost where the tensor is no matrix, and else those types of
/// blocks that lose less than all smaller ones. The loss is measured on a sample of rows.
///
/// # Errors
/// Where a weight cannot be packed.
pub fn choices(
    source: &Source,
    importance: Option<&Importance>,
    options: &WriteOptions,
) -> Result<Vec<Vec<Choice>>, QuantizeError> {
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<Vec<Choice>>> = Mutex::new(vec![Vec::new(); source.tensors.len()]);
    let work = || -> Result<(), QuantizeError> {
        while let Some((index, tensor)) = {
            let index = next.fetch_add(1, Relaxed);
            source.tensors.get(index).map(|tensor| (index, tensor))
        } {
            let own = of_tensor(tensor, importance)?;
            found.lock().unwrap_or_else(PoisonError::into_inner)[index] = own;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads_for(source)).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn of_tensor(tensor: &SourceTensor, importance: Option<&Importance>) -> Result<Vec<Choice>, QuantizeError> {
    if !is_matrix(tensor) {
        let planned = PlannedTensor { dtype: kept(tensor), instead_of: None };
        return Ok(vec![Choice { bytes: planned.bytes(tensor), planned, cost: 0.0 }]);
    }
    let sample = Sample::new(tensor, importance)?;
    let mut choices: Vec<Choice> = Vec::new();
    for wanted in LADDER {
        let dtype = fallback(wanted, tensor.cols());
        let planned = PlannedTensor { dtype, instead_of: (dtype != wanted).then_some(wanted) };
        if !choices.iter().any(|choice| choice.planned.dtype == dtype) {
            choices.push(Choice { bytes: planned.bytes(tensor), cost: sample.loss(tensor, dtype)?, planned });
        }
    }
    choices.sort_by_key(|choice| choice.bytes);
    let mut least = f64::INFINITY;
    choices.retain(|choice| {
        let better = choice.cost < least;
        least = least.min(choice.cost);
        better
    });
    Ok(choices)
}

/// Some rows of a tensor with what an error at each element counts.
struct Sample {
    values: Vec<f32>,
    importance: Option<Vec<f32>>,
}

impl Sample {
    fn new(tensor: &SourceTensor, importance: Option<&Importance>) -> Result<Sample, QuantizeError> {
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let taken: Vec<usize> = (0..rows).step_by(rows.div_ceil(ROWS).max(1)).collect();
        let mut values = vec![0.0; taken.len() * cols];
        for (row, values) in taken.iter().zip(values.chunks_exact_mut(cols)) {
            decode(tensor, *row, values).map_err(|error| refuse(tensor, &error))?;
        }
        let columns = importance.and_then(|all| all.columns(tensor));
        Ok(Sample { importance: columns.map(|columns| columns.repeat(taken.len())), values })
    }

    /// The share of the power, by importance, that a type loses.
    fn loss(&self, tensor: &SourceTensor, dtype: DType) -> Result<f64, QuantizeError> {
        let rows = self.values.len() / tensor.cols();
        let mut packed = vec![0; dtype.row_bytes(tensor.cols()).unwrap_or(0) * rows];
        let mut back = vec![0.0; self.values.len()];
        encode(dtype, &self.values, self.importance.as_deref(), &mut packed).map_err(|error| refuse(tensor, &error))?;
        dequantize(dtype, &packed, &mut back).map_err(|error| refuse(tensor, &error))?;
        let weight = |i: usize| self.importance.as_ref().map_or(1.0, |all| f64::from(all[i]));
        let (mut power, mut error) = (0.0, 0.0);
        for (i, (x, y)) in self.values.iter().zip(&back).enumerate() {
            power += weight(i) * f64::from(*x) * f64::from(*x);
            error += weight(i) * f64::from(x - y) * f64::from(x - y);
        }
        Ok(if power > 0.0 { error / power } else { 0.0 })
    }
}

fn refuse(tensor: &SourceTensor, error: &tensor::blocks::BlockError) -> QuantizeError {
    QuantizeError::Weight { tensor: tensor.name.clone(), reason: error.to_string() }
}

/// Which choice each tensor gets: from the smallest on, always the step that takes off most cost a byte. `None` where
/// no choice reaches the goal.
pub fn search(choices: &[Vec<Choice>], goal: Goal) -> Option<Vec<usize>> {
    let mut at = vec![0; choices.len()];
    let mut bytes: u64 = choices.iter().filter_map(|own| Some(own.first()?.bytes)).sum();
    if let Goal::Bytes(most) = goal
        && bytes > most
    {
        return None;
    }
    loop {
        // Added up anew: what is left after many subtractions would be rounding.
        let cost: f64 = choices.iter().zip(&at).filter_map(|(own, at)| Some(own.get(*at)?.cost)).sum();
        if let Goal::Cost(most) = goal
            && cost <= most
        {
            return Some(at);
        }
        let room = if let Goal::Bytes(most) = goal { most - bytes } else { u64::MAX };
        let steps = choices.iter().zip(&at).enumerate().filter_map(|(index, (own, at))| {
            let (gain, to) = best_step(own, *at, room)?;
            Some((gain, index, to))
        });
        let Some((_, index, to)) = steps.max_by(|a, b| a.0.total_cmp(&b.0)) else {
            return matches!(goal, Goal::Bytes(_)).then_some(at);
        };
        bytes += choices[index][to].bytes - choices[index][at[index]].bytes;
        at[index] = to;
    }
}

/// The larger choice that takes off most cost a byte, of those that need no more than `room`.
fn best_step(own: &[Choice], at: usize, room: u64) -> Option<(f64, usize)> {
    let now = own.get(at)?;
    let steps = own.iter().enumerate().skip(at + 1).filter_map(|(to, choice)| {
        let more = choice.bytes - now.bytes;
        (more <= room).then(|| ((now.cost - choice.cost) / more.max(1) as f64, to))
    });
    steps.max_by(|a, b| a.0.total_cmp(&b.0))
}

impl Plan {
    /// The plan of a search.
    pub fn of_choices(choices: &[Vec<Choice>], at: &[usize]) -> Plan {
        let tensors: Vec<PlannedTensor> = choices.iter().zip(at).map(|(own, at)| own[*at].planned.clone()).collect();
        // What most of the weights have gives the file its name for others.
        let bytes = |dtype: DType| {
            let own = choices.iter().zip(at).map(|(own, at)| &own[*at]);
            own.filter(|choice| choice.planned.dtype == dtype).map(|choice| choice.bytes).sum::<u64>()
        };
        let most = tensors.iter().map(|planned| planned.dtype).max_by_key(|dtype| bytes(*dtype));
        Plan { tensors, file_type: most.map_or(0, crate::presets::file_type), preset: "search".to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(bytes: u64, cost: f64) -> Choice {
        Choice { planned: PlannedTensor { dtype: DType::F16, instead_of: None }, bytes, cost }
    }

    /// Every combination, for a few tensors.
    fn all(choices: &[Vec<Choice>]) -> Vec<(u64, f64)> {
        choices.iter().fold(vec![(0, 0.0)], |sums, own| {
            let add = |(bytes, cost): &(u64, f64)| {
                own.iter().map(|choice| (bytes + choice.bytes, cost + choice.cost)).collect::<Vec<_>>()
            };
            sums.iter().flat_map(add).collect()
        })
    }

    #[test]
    fn steps_that_pay_are_taken_first() {
        let choices = [
            vec![choice(10, 8.0), choice(20, 3.0), choice(40, 1.0)],
            vec![choice(5, 1.0), choice(10, 0.1)],
            vec![choice(7, 0.0)],
        ];
        let sums = |at: &[usize]| {
            let own = choices.iter().zip(at).map(|(own, at)| &own[*at]);
            own.fold((0, 0.0), |(bytes, cost), choice| (bytes + choice.bytes, cost + choice.cost))
        };
        for most in [22, 30, 32, 37, 57, 1000] {
            let at = search(&choices, Goal::Bytes(most)).unwrap();
            let best = all(&choices).into_iter().filter(|(bytes, _)| *bytes <= most).map(|(_, cost)| cost);
            assert!(sums(&at).0 <= most);
            assert_eq!(sums(&at).1, best.fold(f64::INFINITY, f64::min), "{most}");
        }
        for most in [1.1, 3.1, 4.0, 9.0] {
            let at = search(&choices, Goal::Cost(most)).unwrap();
            let best = all(&choices).into_iter().filter(|(_, cost)| *cost <= most).map(|(bytes, _)| bytes);
            assert_eq!(Some(sums(&at).0), best.min(), "{most}");
        }
        assert_eq!(search(&choices, Goal::Bytes(21)), None);
        assert_eq!(search(&choices, Goal::Cost(1.0)), None);
    }

    #[test]
    fn a_larger_type_that_loses_more_is_no_choice() {
        let data: Vec<u8> = tensor::blocks::random_blocks(DType::F32, 64 * 256, 3, 0.02);
        let source = Source {
            tensors: vec![
                SourceTensor::plain("blk.0.ffn_up.weight", DType::F32, vec![64, 256], data.into()),
                SourceTensor::plain("blk.0.attn_norm.weight", DType::F32, vec![2], vec![0; 8].into()),
            ],
            ..Source::default()
        };
        let choices = choices(&source, None, &WriteOptions::default()).unwrap();
        assert!(choices[0].len() >= 5, "{choices:?}");
        assert!(choices[0].is_sorted_by(|a, b| a.bytes < b.bytes && a.cost > b.cost), "{choices:?}");
        assert_eq!((choices[1].len(), choices[1][0].cost), (1, 0.0));
    }
}
