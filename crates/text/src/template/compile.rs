//! A template to instructions of the engine: those that are known, with guards around each that could outrun the budget.
//!
//! The engine charges its fuel for most of what it does, but not for all (minijinja 3.1, `vm/fuel.rs` and
//! `value/ops.rs`): `+` lays out lists that were doubled thirty-three times, `~` and `==` walk a list that holds itself
//! twice forty levels deep, `*` of two literals is computed before a rendering begins. So the instructions of a
//! template are rewritten. Where one takes values that it may walk, the values first pass through a function of
//! [`super::guard`], which charges for them; where one makes a list that is computed item by item, the list passes
//! through another, which lays it out, so that no other instruction meets such a list. Both take the values from the
//! stack and put them back:
//!
//! ```text
//! a · b · Eq    becomes   a · b · CallFunction((deep), 2) · UnpackList(2) · Eq
//! a · b · Add   becomes   a · b · Add · CallFunction((result), 1) · UnpackList(1)
//! ```
//!
//! Methods are none of the engine's: `CallMethod` becomes a call of [`super::methods`]. Filters, tests and functions
//! are own code or wrapped in it, and charge for themselves, so that they cost the same by whatever name or through
//! whatever other filter they are called. [`step`] lists every instruction that may stand in a template; any other is
//! refused by its name.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, Value as Jinja};

use super::guard::Guard;
use super::meter::{is_plain, refused};
use super::methods::METHOD;

/// A global of value 1. What is multiplied by a variable is not computed before the rendering.
pub(super) const UNIT: &str = "__unit";

/// The longest source. Those of published models have up to 30 KB.
const MAX_SOURCE_BYTES: usize = 256 << 10;

/// The longest tag. `a + b + c` nests as deep as it is long, and the compiler looks for constants again at each level.
const MAX_TAG_TOKENS: usize = 2000;

/// The longest name of a variable, an attribute or a filter: each use of it reads it.
const MAX_NAME_BYTES: usize = 128;

/// The longest literal that is a key at no charge.
const MAX_FREE_KEY_BYTES: usize = 128;

/// The most parameters of a macro, and attributes of namespaces: each mention of one may copy all their names.
pub(super) const MAX_NAMES: usize = 64;

/// Instructions of a template and of its blocks.
pub(super) struct Compiled<'s> {
    pub(super) root: Instructions<'s>,
    pub(super) blocks: BTreeMap<&'s str, Instructions<'s>>,
}

/// Compiles `source`, which [`prepared`] has made. Recursion is as deep as a tag is long, and as there are `elif`s.
pub(super) fn compile<'s>(name: &'s str, source: &'s str, syntax: &SyntaxConfig) -> Result<Compiled<'s>, Error> {
    let tree = parse(source, name, syntax.clone())?;
    let mut generator = CodeGenerator::new(name, source);
    generator.compile_stmt(&tree);
    let (root, blocks) = generator.finish();
    let names: BTreeSet<&str> = blocks.values().chain([&root]).flat_map(attributes_set).collect();
    if names.len() > MAX_NAMES {
        return Err(refused(&format!("more than {MAX_NAMES} different attributes of namespaces")));
    }
    let blocks = blocks.iter().map(|(&block, code)| Ok((block, guarded(code)?))).collect::<Result<_, Error>>()?;
    Ok(Compiled { root: guarded(&root)?, blocks })
}

/// The source as it is compiled: with [`UNIT`] before what a `*` beside a bracket multiplies by, since a list literal
/// that is repeated would otherwise be laid out by the compiler, which has no budget.
///
/// # Errors
/// For a source or a tag beyond the limits.
pub(super) fn prepared(source: &str, syntax: &SyntaxConfig) -> Result<String, Error> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(refused(&format!("a template of {} bytes, of at most {MAX_SOURCE_BYTES}", source.len())));
    }
    let mut output = String::with_capacity(source.len());
    let mut copied = 0;
    let mut in_tag = 0;
    let mut is_block = false;
    // What is no token is left to the parser, which says where.
    let mut tokens = tokenize(source, false, syntax.clone()).map_while(Result::ok).peekable();
    let mut before = None;
    while let Some((token, span)) = tokens.next() {
        let after = tokens.peek().map(|(token, _)| token);
        let opens = |token: Option<&Token<'_>>| matches!(token, Some(Token::BracketOpen | Token::ParenOpen));
        let closes = |token: Option<&Token<'_>>| matches!(token, Some(Token::BracketClose | Token::ParenClose));
        if matches!(token, Token::Mul) && (closes(before.as_ref()) || opens(after)) {
            let end = span.end_offset as usize;
            output.push_str(source.get(copied..end).unwrap_or_default());
            output.push_str(UNIT);
            output.push('*');
            copied = end;
        }
        in_tag = if matches!(token, Token::VariableStart | Token::BlockStart) { 0 } else { in_tag + 1 };
        let line = span.start_line;
        if in_tag > MAX_TAG_TOKENS {
            return Err(refused(&format!("a tag of more than {MAX_TAG_TOKENS} words and signs, in line {line}")));
        }
        if matches!(token, Token::Ident(name) if name.len() > MAX_NAME_BYTES) {
            return Err(refused(&format!("a name of more than {MAX_NAME_BYTES} bytes, in line {line}")));
        }
        // `{% block name required %}`: the mark does not outlast the rewriting.
        is_block = if in_tag == 1 { matches!(token, Token::Ident("block")) } else { is_block };
        if is_block && in_tag > 2 && matches!(token, Token::Ident("required")) {
            return Err(refused(&format!("a required block, in line {line}")));
        }
        before = Some(token);
    }
    output.push_str(source.get(copied..).unwrap_or_default());
    Ok(output)
}

/// The names that `code` sets in namespaces.
fn attributes_set<'s>(code: &Instructions<'s>) -> Vec<&'s str> {
    let name = |instruction: &Instruction<'s>| match instruction {
        Instruction::SetAttr(name) => Some(*name),
        _ => None,
    };
    (0..).map_while(|at| code.get(at)).filter_map(name).collect()
}

/// What an instruction becomes.
#[derive(Default)]
struct Step {
    /// The guard before it, and how many values that takes.
    before: Option<(Guard, u16)>,
    /// Whether its result is laid out after it.
    after: bool,
    /// For a method: its name, and how many values it takes.
    method: Option<(Jinja, u16)>,
}

impl Step {
    fn guarded(guard: Guard, count: u16) -> Self {
        Self { before: (count > 0).then_some((guard, count)), ..Self::default() }
    }

    /// How many instructions it comes to.
    fn len(&self) -> u32 {
        let own = if self.method.is_some() { 2 } else { 1 };
        own + if self.before.is_some() { 2 } else { 0 } + if self.after { 2 } else { 0 }
    }
}

/// `code` with guards.
fn guarded<'s>(code: &Instructions<'s>) -> Result<Instructions<'s>, Error> {
    let old: Vec<&Instruction<'s>> = (0..).map_while(|at| code.get(at)).collect();
    let targets: BTreeSet<usize> = old.iter().filter_map(|i| target(i)).map(|at| at as usize).collect();
    let mut steps = Vec::with_capacity(old.len());
    // Where each instruction, or the guard before it, comes to stand.
    let mut starts: Vec<u32> = Vec::with_capacity(old.len() + 1);
    let mut next = 0;
    for (at, instruction) in old.iter().enumerate() {
        let before = if targets.contains(&at) { None } else { at.checked_sub(1).map(|before| old[before]) };
        let step = step(instruction, before)?;
        starts.push(next);
        next += step.len();
        steps.push(step);
    }
    starts.push(next);
    let mut new = Instructions::new(code.name(), code.source());
    for (at, (instruction, step)) in old.into_iter().zip(steps).enumerate() {
        let line = u16::try_from(code.get_line(at as u32).unwrap_or(0)).unwrap_or(u16::MAX);
        let mut add = |instruction| new.add_with_line(instruction, line);
        if let Some((guard, count)) = step.before {
            add(Instruction::CallFunction(guard.name(), Some(count)));
            add(Instruction::UnpackList(usize::from(count)));
        }
        if let Some((name, count)) = step.method {
            add(Instruction::LoadConst(name));
            add(Instruction::CallFunction(METHOD, Some(count)));
        } else {
            add(moved(instruction, |to| starts.get(to as usize).copied().unwrap_or(to)));
        }
        if step.after {
            add(Instruction::CallFunction(Guard::Result.name(), Some(1)));
            add(Instruction::UnpackList(1));
        }
    }
    Ok(new)
}

/// What `instruction` becomes. `before` runs right before it, always.
///
/// # Errors
/// For an instruction that no template may have.
fn step(instruction: &Instruction<'_>, before: Option<&Instruction<'_>>) -> Result<Step, Error> {
    use Instruction as I;
    let constant = match before {
        Some(I::LoadConst(value)) => Some(value),
        _ => None,
    };
    // To compare a value with a scalar is to look at the scalar.
    let scalar = constant.is_some_and(|value| value.as_object().is_none());
    let items = |count: usize| u16::try_from(count).map_err(|_| refused("a literal of more than 65535 items"));
    let arguments = |count: &Option<u16>| count.ok_or_else(|| refused("`*` before an argument"));
    let result = Step { after: true, ..Step::default() };
    Ok(match instruction {
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte if scalar => Step::default(),
        I::Eq | I::Ne | I::Gt | I::Gte | I::Lt | I::Lte | I::StringConcat => Step::guarded(Guard::Deep, 2),
        // `in` too, which takes its operands the other way round: walking both covers either.
        I::CompareAndPreserve(_) => Step::guarded(Guard::Deep, 2),
        I::In => Step::guarded(Guard::In, 2),
        // Strings are charged for by the engine, which checks that they can be paid for before it makes them; so are
        // tuples. Of lists both make one that is computed item by item.
        I::Add if scalar => Step::default(),
        I::Add | I::Mul => result,
        I::Slice => Step { after: true, ..Step::guarded(Guard::Slice, 4) },
        I::LoadConst(value) => Step { after: !is_plain(value), ..Step::default() },
        I::GetItem if constant.and_then(Jinja::as_str).is_some_and(|key| key.len() <= MAX_FREE_KEY_BYTES) => {
            Step::default()
        }
        I::GetItem => Step::guarded(Guard::Key, 2),
        I::SetAttr(_) => Step::guarded(Guard::Stored, 2),
        I::PushLoop(_) | I::FastRecurse => Step::guarded(Guard::Iterated, 1),
        I::UnpackList(_) => Step::guarded(Guard::Unpacked, 1),
        I::BuildMap(pairs) => Step::guarded(Guard::Pairs, items(pairs.saturating_mul(2))?),
        I::BuildList(Some(count)) | I::BuildTuple(Some(count)) => Step::guarded(Guard::Items, items(*count)?),
        I::BuildMacro(..) => match constant.and_then(Jinja::len) {
            Some(0..=MAX_NAMES) => Step::default(),
            _ => return Err(refused(&format!("a macro of more than {MAX_NAMES} parameters"))),
        },
        I::CallFunction("super", _) | I::FastSuper => return Err(refused("`super`")),
        // A call with one argument may be that of a recursive loop, under whatever name; others are of own functions,
        // which charge for themselves, and of macros.
        I::CallFunction(_, Some(1)) => Step::guarded(Guard::Iterated, 1),
        I::CallFunction(_, count) => arguments(count).map(|_| Step::default())?,
        I::CallMethod(name, count) => {
            let count = arguments(count)?.checked_add(1).ok_or_else(|| refused("65535 arguments"))?;
            Step { method: Some((Jinja::from(*name), count)), ..Step::default() }
        }
        // These charge for themselves: see `filters`, `predicates`, and the formatter in `functions`.
        I::ApplyFilter(_, count, _) | I::PerformTest(_, count, _) => arguments(count).map(|_| Step::default())?,
        I::Emit => Step::default(),
        // Numbers alone, in constant time; anything else is refused by the engine with the names of the types.
        I::Sub | I::Div | I::IntDiv | I::Rem | I::Pow | I::Neg => Step::default(),
        // A name is at most MAX_NAME_BYTES long, a namespace or a map is searched by its hash or in order, and scopes
        // nest no deeper than the recursion limit.
        I::Lookup(_) | I::StoreLocal(_) | I::GetAttr(_) | I::Enclose(_) | I::GetClosure => Step::default(),
        // The names are those of the source, the values are on the stack already.
        I::BuildKwargs(_) => Step::default(),
        // Of lists, maps and strings only the length is asked for; a namespace has at most twice MAX_NAMES attributes.
        I::Not | I::IsUndefined | I::JumpIfFalse(_) | I::JumpIfFalseOrPop(_) | I::JumpIfTrueOrPop(_) => Step::default(),
        // The engine charges for each byte of output, captured or not.
        I::EmitRaw(_) | I::BeginCapture(_) | I::EndCapture => Step::default(),
        // Constant time; the depth of frames and blocks is bounded by the recursion limit.
        I::Iterate(_) | I::PushDidNotIterate | I::PushWith | I::PopFrame | I::PopLoopFrame => Step::default(),
        I::Jump(_) | I::DupTop | I::DiscardTop | I::Swap | I::Return | I::CallBlock(_) => Step::default(),
        // The items that `for x in y if z` has kept, on the stack with their number.
        I::BuildList(None) => Step::default(),
        I::MergeKwargs(_) | I::UnpackLists(_) | I::BuildTuple(None) => {
            return Err(refused("`*` or `**` before an argument"));
        }
        I::CallObject(_) => return Err(refused("a call of what is not a name")),
        I::Include(_) => return Err(refused("`include`")),
        I::LoadBlocks => return Err(refused("`extends`")),
        I::ExportLocals => return Err(refused("`import`")),
        I::PushAutoEscape | I::PopAutoEscape => return Err(refused("`autoescape`")),
        #[allow(unreachable_patterns, reason = "a newer engine may have more")]
        other => {
            let name = format!("{other:?}");
            return Err(refused(&format!("the instruction {}", name.split('(').next().unwrap_or_default())));
        }
    })
}

fn target(instruction: &Instruction<'_>) -> Option<u32> {
    use Instruction as I;
    match *instruction {
        I::Iterate(to) | I::Jump(to) | I::JumpIfFalse(to) | I::JumpIfFalseOrPop(to) | I::JumpIfTrueOrPop(to) => {
            Some(to)
        }
        I::BuildMacro(_, to, _) => Some(to),
        _ => None,
    }
}

fn moved<'s>(instruction: &Instruction<'s>, place: impl Fn(u32) -> u32) -> Instruction<'s> {
    use Instruction as I;
    match *instruction {
        I::Iterate(to) => I::Iterate(place(to)),
        I::Jump(to) => I::Jump(place(to)),
        I::JumpIfFalse(to) => I::JumpIfFalse(place(to)),
        I::JumpIfFalseOrPop(to) => I::JumpIfFalseOrPop(place(to)),
        I::JumpIfTrueOrPop(to) => I::JumpIfTrueOrPop(place(to)),
        I::BuildMacro(name, to, flags) => I::BuildMacro(name, place(to), flags),
        ref other => other.clone(),
    }
}
