//! From a preset and rules to a type for each tensor.

use files::gguf::Head;
use regex_automata::meta::Regex;
use tensor::{DType, encode};

use crate::{
    QuantizeError, Source, SourceTensor,
    presets::{Context, PRESETS, Preset, fallback, preset_names},
    write::{heads, metadata},
};

/// Which type each tensor gets.
pub struct Mix {
    preset: &'static Preset,
    rules: Vec<Rule>,
}

/// A pattern and a type for the tensors whose whole name it fits.
pub struct Rule {
    text: String,
    pattern: Regex,
    dtype: DType,
}

/// Tensors with the types they get.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order of the source.
    pub tensors: Vec<PlannedTensor>,
    /// `general.file_type`.
    pub file_type: u32,
    /// The name of the preset.
    pub preset: String,
}

/// A tensor's type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// What it becomes.
    pub dtype: DType,
    /// What it would have become, where its rows do not divide into blocks of that.
    pub instead_of: Option<DType>,
}

impl PlannedTensor {
    /// Bytes that the tensor takes.
    ///
    /// # Panics
    /// Where this was planned for another tensor.
    pub(crate) fn bytes(&self, tensor: &SourceTensor) -> u64 {
        let row = self.dtype.row_bytes(tensor.cols()).expect("the plan falls back to what divides the row");
        row as u64 * tensor.rows() as u64
    }
}

impl Rule {
    /// Reads `PATTERN=TYPE`, the pattern a regular expression that must fit a whole name.
    ///
    /// # Errors
    /// Where it is not of this form, or names no type that weights can be packed into.
    pub fn parse(text: &str) -> Result<Rule, QuantizeError> {
        let fail = |reason: String| QuantizeError::Rule { rule: text.to_owned(), reason };
        let Some((pattern, name)) = text.rsplit_once('=') else {
            return Err(fail("expected PATTERN=TYPE, as blk\\.0\\..*=q8_0".to_owned()));
        };
        let dtype = type_named(name).ok_or_else(|| {
            let known = encode::TYPES.map(|dtype| dtype.name().to_lowercase()).join(", ");
            fail(format!("no type is named {name:?}; there are: {known}"))
        })?;
        /// Bytes of a compiled pattern: far above what names call for.
        const LIMIT: usize = 1 << 20;
        let pattern = Regex::builder()
            .configure(Regex::config().nfa_size_limit(Some(LIMIT)))
            .build(&format!("^(?:{pattern})$"))
            .map_err(|error| fail(error.to_string().lines().last().unwrap_or("not a pattern").to_owned()))?;
        Ok(Rule { text: text.to_owned(), pattern, dtype })
    }
}

fn type_named(name: &str) -> Option<DType> {
    encode::TYPES.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name))
}

impl Mix {
    /// The preset of this name, in any case: see [`crate::preset_names`].
    ///
    /// # Errors
    /// Where there is none.
    pub fn preset(name: &str) -> Result<Mix, QuantizeError> {
        let preset = Preset::find(&name.to_ascii_lowercase()).ok_or_else(|| QuantizeError::UnknownPreset {
            name: name.to_owned(),
            known: preset_names().collect::<Vec<_>>().join(", "),
        })?;
        Ok(Mix { preset, rules: Vec::new() })
    }

    /// Adds a rule. The first rule that fits a tensor wins, and any wins over the preset.
    pub fn rule(mut self, rule: Rule) -> Mix {
        self.rules.push(rule);
        self
    }
}

impl Plan {
    /// Gives every tensor its type. Vectors, norms and what is no weight stay as they are, in `f32` where they are of a
    /// half type; no rule speaks of them.
    ///
    /// # Errors
    /// Where a rule fits no matrix.
    pub fn new(source: &Source, mix: &Mix, has_importance: bool) -> Result<Plan, QuantizeError> {
        let context = Context::new(source, has_importance);
        let mut used = vec![false; mix.rules.len()];
        let mut choose = |tensor: &SourceTensor| {
            if !is_matrix(tensor) {
                return PlannedTensor { dtype: kept(tensor), instead_of: None };
            }
            let fits = |rule: &Rule| rule.pattern.is_match(&tensor.name);
            // Every rule that fits counts as used: one that another hides is no mistake in the pattern.
            mix.rules.iter().zip(&mut used).for_each(|(rule, used)| *used |= fits(rule));
            let wanted = match mix.rules.iter().find(|rule| fits(rule)) {
                Some(rule) => rule.dtype,
                None => mix.preset.choose(&tensor.name, tensor.cols(), &context),
            };
            let dtype = fallback(wanted, tensor.cols());
            PlannedTensor { dtype, instead_of: (dtype != wanted).then_some(wanted) }
        };
        let tensors = source.tensors.iter().map(&mut choose).collect();
        if let Some(rule) = mix.rules.iter().zip(&used).find(|(_, used)| !**used).map(|(rule, _)| rule) {
            let example = source.tensors.iter().find(|tensor| is_matrix(tensor));
            let example = example.map_or(String::new(), |tensor| tensor.name.clone());
            return Err(QuantizeError::Unmatched { rule: rule.text.clone(), example });
        }
        debug_assert!(PRESETS.iter().any(|preset| preset.name == mix.preset.name));
        Ok(Plan { tensors, file_type: mix.preset.file_type, preset: mix.preset.name.to_owned() })
    }

    /// Matrices with the type they have.
    pub fn unchanged(source: &Source) -> Plan {
        let keep = |tensor: &SourceTensor| {
            let dtype = if is_matrix(tensor) { tensor.dtype } else { kept(tensor) };
            PlannedTensor { dtype, instead_of: None }
        };
        Plan { tensors: source.tensors.iter().map(keep).collect(), file_type: 0, preset: "unchanged".to_owned() }
    }

    /// Bytes of the whole file, its head included.
    ///
    /// # Errors
    /// Where the head cannot be made.
    pub fn file_bytes(&self, source: &Source) -> Result<u64, QuantizeError> {
        let head = Head::new(&metadata(source, self, None), &heads(source, self)).map_err(QuantizeError::Head)?;
        Ok(head.file_bytes)
    }

    /// Bytes of all tensors, without the head of the file.
    ///
    /// # Panics
    /// Where the plan was made for another source.
    pub fn bytes(&self, source: &Source) -> u64 {
        assert_eq!(self.tensors.len(), source.tensors.len(), "a plan of this source");
        self.tensors.iter().zip(&source.tensors).map(|(planned, tensor)| planned.bytes(tensor)).sum()
    }
}

/// Whether a tensor is a matrix of weights that may be packed.
pub(crate) fn is_matrix(tensor: &SourceTensor) -> bool {
    let matrix = tensor.shape.iter().filter(|dim| **dim > 1).count() > 1;
    let name = &tensor.name;
    // Small or delicate tables that llama.cpp leaves alone too.
    let delicate = ["_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight"];
    let kept = delicate.iter().any(|end| name.ends_with(end)) || !name.ends_with("weight");
    matrix && tensor.dtype.is_weight() && !kept
}

/// The type of what is not packed.
pub(crate) fn kept(tensor: &SourceTensor) -> DType {
    match tensor.dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}
