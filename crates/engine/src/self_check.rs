//! The self-check of Vulkan devices: before a model runs on one for the first time, its kernels are checked against the
//! CPU's on small cases of the same shapes ([`graph::check`]). What came of it is kept on disk by device, driver and
//! kernels. A wrong result is worse than no result: what differs is left unused, and said.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use graph::{
    Arithmetic, Device, DeviceError, Graph, KvType, Memory, NodeId, Part, Program, Rates, Share, Weight,
    check::{Case, CheckError},
};
use serde::{Deserialize, Serialize};
use vulkan::Vulkan;

use crate::{EngineError, devices::Devices};

/// Capabilities that have a fallback, in the order in which they are suspected.
const SUSPECTS: [&str; 3] = ["matrix-fragments", "cooperative-matrix", "integer-dot"];

/// What is known of a device's kernels, as the file holds it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// Device, driver, kernels and the capabilities in use.
    kernels: String,
    /// By case, why it is not to be trusted; nothing where it is.
    cases: BTreeMap<String, Option<String>>,
}

impl Known {
    /// What the file at `path` says of these kernels: nothing where it is of others, or damaged, which is said.
    fn read(path: Option<&Path>, kernels: &str, notices: &mut Vec<String>) -> Known {
        let none = || Known { kernels: kernels.to_owned(), cases: BTreeMap::new() };
        let Some((path, text)) = path.and_then(|path| Some((path, std::fs::read(path).ok()?))) else { return none() };
        match serde_json::from_slice::<Known>(&text) {
            Ok(known) if known.kernels == kernels => known,
            Ok(_) => none(),
            Err(_) => {
                notices.push(format!("{} is damaged: the kernels are checked anew", path.display()));
                none()
            }
        }
    }

    /// What is known of a device's kernels as they are now.
    pub(crate) fn of(vulkan: &Vulkan, notices: &mut Vec<String>) -> Known {
        Known::read(vulkan.cache_file("checks").as_deref(), &vulkan.kernels_id(), notices)
    }

    /// Keeps it for the device. That it cannot be written costs time at the next start.
    pub(crate) fn keep(&self, vulkan: &Vulkan) {
        if let Some(path) = vulkan.cache_file("checks") {
            self.write(&path);
        }
    }

    fn write(&self, path: &Path) {
        let _ = replace(path, &serde_json::to_vec(self).unwrap_or_default());
    }
}

/// Writes a file beside its place and moves it there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&beside, bytes))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// What came of a check.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What to tell.
    pub(crate) notices: Vec<String>,
    /// What is left unused.
    pub(crate) excluded: Vec<String>,
}

/// Checks the Vulkan device for a graph, where there is one and it was not checked before.
///
/// # Errors
/// Where the device fails while it is checked, or cannot be opened again.
pub(crate) fn check(
    devices: &mut Devices,
    graph: &Graph,
    arithmetic: Arithmetic,
    kv: KvType,
) -> Result<Found, EngineError> {
    let mut found = Found::default();
    if !devices.vulkan().is_some_and(is_wanted) {
        return Ok(found);
    }
    let cases = graph::check::cases(graph);
    let oracle = devices.oracle()?;
    let mut suspects = SUSPECTS.into_iter();
    loop {
        let vulkan = devices.vulkan().expect("looked for above");
        let mut known = Known::of(vulkan, &mut found.notices);
        let name = vulkan.name().to_owned();
        let failed = check_cases(&cases, vulkan, &*oracle, (arithmetic, kv), &mut known)?;
        known.keep(vulkan);
        let Some((case, reason)) = failed.first() else { return Ok(found) };
        let what = format!("{name}: kernels of {} differ from the CPU's ({reason})", case.name);
        let suspect = suspects.find(|suspect| vulkan.uses(suspect));
        match suspect {
            Some(suspect) => {
                found.excluded.push(format!("{what}: {suspect} is left unused"));
                devices.reopen_vulkan(Some(suspect))?;
            }
            None => {
                let units = failed.iter().flat_map(|(case, _)| case.units.clone()).collect();
                devices.refuse(units, what.clone());
                found.excluded.push(what);
                return Ok(found);
            }
        }
    }
}

/// `UNICORN_VULKAN_CHECK` says whether to check, as 0 or 1. Else a software device is not checked: it is for tests, has
/// them, and takes longer to compile kernels than to run a small model.
fn is_wanted(vulkan: &Vulkan) -> bool {
    match std::env::var("UNICORN_VULKAN_CHECK").as_deref() {
        Ok("0") => false,
        Ok("1") => true,
        _ => vulkan.capabilities().kind != vulkan::Kind::Software,
    }
}

/// The cases that a device is not to be trusted with, and why. Those that are not known are checked, and known then.
pub(crate) fn check_cases<'a>(
    cases: &'a [Case],
    device: &dyn Device,
    oracle: &dyn Device,
    (arithmetic, kv): (Arithmetic, KvType),
    known: &mut Known,
) -> Result<Vec<(&'a Case, String)>, DeviceError> {
    let mut failed = Vec::new();
    for case in cases {
        let key = format!("{:016x}", digest(format!("{arithmetic:?} {kv:?} {}", case.key).as_bytes()));
        let reason = match known.cases.get(&key) {
            Some(reason) => reason.clone(),
            None => {
                let reason = match case.check(device, oracle, arithmetic, kv) {
                    Ok(()) => None,
                    Err(error @ CheckError::Differs { .. }) => Some(error.to_string()),
                    Err(CheckError::Device(error)) => return Err(error),
                };
                known.cases.insert(key, reason.clone());
                reason
            }
        };
        failed.extend(reason.map(|reason| (case, reason)));
    }
    Ok(failed)
}

/// FNV-1a: names a case.
fn digest(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A device that is not trusted with some units.
pub(crate) struct Refusing {
    pub(crate) inner: Arc<dyn Device>,
    pub(crate) units: Vec<(Part, Option<u32>)>,
    pub(crate) reason: String,
}

impl Device for Refusing {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn memory(&self) -> Memory {
        self.inner.memory()
    }
    fn rates(&self) -> Option<Rates> {
        self.inner.rates()
    }
    fn supports(&self, graph: &Graph, node: NodeId) -> Result<(), String> {
        let own = graph.node(node);
        if self.units.contains(&(own.part, own.layer)) {
            return Err(self.reason.clone());
        }
        self.inner.supports(graph, node)
    }
    fn phases(&self, graph: &Graph, nodes: std::ops::Range<usize>) -> Vec<usize> {
        self.inner.phases(graph, nodes)
    }
    fn weight_bytes(&self, graph: &Graph, node: NodeId, weight: &Weight, arithmetic: Arithmetic) -> u64 {
        self.inner.weight_bytes(graph, node, weight, arithmetic)
    }
    fn working_bytes(&self, share: &Share<'_>) -> u64 {
        self.inner.working_bytes(share)
    }
    fn compile(&self, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        self.inner.compile(share, progress)
    }
}

#[cfg(test)]
mod tests;
