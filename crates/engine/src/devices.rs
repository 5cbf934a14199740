//! The devices there are. A new device is one crate and one line of `Devices::add`.

use std::sync::Arc;

use cpu::{Cpu, CpuInfo, CpuOptions};
use graph::{Device, reference::Reference};

use crate::EngineError;

/// How devices are set up.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Threads of the CPU device; `None` takes one a core.
    pub threads: Option<usize>,
    /// Instruction set of the CPU device; `None` takes the best.
    pub isa: Option<String>,
}

/// A set of open devices, in order of preference.
pub struct Devices {
    all: Vec<Arc<dyn Device>>,
    cpu: Option<Arc<Cpu>>,
}

impl Devices {
    /// Opens devices by name, separated by commas: `auto` (the best there is), `cpu`, `reference` (the slow oracle).
    ///
    /// # Errors
    /// Where a device is unknown, not part of this build, or cannot be opened.
    pub fn open(names: &str, options: &DeviceOptions) -> Result<Devices, EngineError> {
        let mut devices = Devices { all: Vec::new(), cpu: None };
        for name in names.split(',').map(str::trim) {
            devices.add(name, options)?;
        }
        Ok(devices)
    }

    fn add(&mut self, name: &str, options: &DeviceOptions) -> Result<(), EngineError> {
        let fail = |reason: String| EngineError::Device { name: name.to_owned(), reason };
        match name {
            "auto" | "cpu" => {
                if self.cpu.is_some() {
                    return Err(fail("named twice".to_owned()));
                }
                let cpu = Cpu::new(CpuOptions { threads: options.threads, isa: options.isa.clone() })
                    .map_err(|error| fail(error.to_string()))?;
                let cpu = Arc::new(cpu);
                self.cpu = Some(cpu.clone());
                self.all.push(cpu);
            }
            "reference" => self.all.push(Arc::new(Reference)),
            "vulkan" | "gpu" | "xdna" | "npu" => return Err(fail("this build has no such device yet".to_owned())),
            _ => return Err(fail("unknown; there are: auto, cpu, reference".to_owned())),
        }
        Ok(())
    }

    /// The devices, in order of preference.
    pub fn list(&self) -> Vec<&dyn Device> {
        self.all.iter().map(|device| &**device).collect()
    }

    /// The CPU device, where it is among them.
    pub fn cpu(&self) -> Option<&Cpu> {
        self.cpu.as_deref()
    }
}

/// What `unicorn devices` tells of the CPU.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CpuReport {
    /// Model name.
    pub model: String,
    /// Cores, where the system says.
    pub cores: Option<usize>,
    /// Logical processors this process may use.
    pub processors: usize,
    /// Threads the device uses.
    pub threads: usize,
    /// Instruction set the kernels are chosen by.
    pub isa: String,
    /// Instruction sets that matter to the kernels.
    pub features: Vec<&'static str>,
    /// Memory of the machine or control group, bytes.
    pub memory_total_bytes: u64,
    /// Memory to be had now, bytes.
    pub memory_available_bytes: u64,
    /// Measured read bandwidth of all threads, bytes a second.
    pub read_bytes_per_s: f64,
    /// Measured rate of 8-bit integer products of all threads, operations a second; `None` where the kernels have no
    /// instruction for them.
    pub int8_ops_per_s: Option<f64>,
}

/// Describes and measures the CPU device.
///
/// # Errors
/// Where it cannot be opened.
pub fn cpu_report(options: &DeviceOptions) -> Result<CpuReport, EngineError> {
    let devices = Devices::open("cpu", options)?;
    let cpu = devices.cpu().expect("just opened");
    let (info, memory, rates) = (CpuInfo::query(), cpu.memory(), cpu.measure());
    Ok(CpuReport {
        model: info.model,
        cores: info.cores,
        processors: info.processors,
        threads: cpu.threads(),
        isa: cpu.isa().to_owned(),
        features: info.features,
        memory_total_bytes: memory.total_bytes,
        memory_available_bytes: memory.available_bytes,
        read_bytes_per_s: rates.read_bytes_per_s,
        int8_ops_per_s: rates.int8_ops_per_s,
    })
}
