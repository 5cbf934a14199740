//! The devices there are. A new device is one crate and one line of `Devices::add`.

use std::{path::PathBuf, sync::Arc};

use cpu::{Cpu, CpuInfo, CpuOptions};
use graph::{Device, Rates, reference::Reference};
use vulkan::{Vulkan, VulkanError, VulkanOptions};

use crate::EngineError;

/// How devices are set up.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Threads of the CPU device; `None` takes one a core.
    pub threads: Option<usize>,
    /// Instruction set of the CPU device; `None` takes the best.
    pub isa: Option<String>,
    /// Whether the kernels of Vulkan devices are timed.
    pub profile: bool,
}

/// A set of open devices, in order of preference.
pub struct Devices {
    all: Vec<Arc<dyn Device>>,
    cpu: Option<Arc<Cpu>>,
    vulkan: Option<Arc<Vulkan>>,
}

impl Devices {
    /// Opens devices by name, separated by commas: `auto` (a GPU where there is one, then the CPU), `cpu`, `vulkan` (the
    /// first that is no software), `vulkan:N` (by number), `reference` (the slow oracle).
    ///
    /// # Errors
    /// Where a device is unknown, not part of this build, or cannot be opened.
    pub fn open(names: &str, options: &DeviceOptions) -> Result<Devices, EngineError> {
        let mut devices = Devices { all: Vec::new(), cpu: None, vulkan: None };
        for name in names.split(',').map(str::trim) {
            devices.add(name, options)?;
        }
        Ok(devices)
    }

    fn add(&mut self, name: &str, options: &DeviceOptions) -> Result<(), EngineError> {
        let fail = |reason: String| EngineError::Device { name: name.to_owned(), reason };
        match name {
            "auto" => {
                // Whatever keeps a GPU from being used is told by `unicorn devices`.
                if self.vulkan.is_none()
                    && let Ok(vulkan) = Vulkan::open(vulkan_options(None, options))
                {
                    self.add_vulkan(vulkan);
                }
                self.add("cpu", options)?;
            }
            "cpu" => {
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
            "xdna" | "npu" => return Err(fail("this build has no such device yet".to_owned())),
            _ => {
                let unknown = || fail("unknown; there are: auto, cpu, vulkan, vulkan:N, reference".to_owned());
                let index = match name.strip_prefix("vulkan").ok_or_else(unknown)? {
                    "" => None,
                    number => {
                        let number = number.strip_prefix(':').and_then(|number| number.parse().ok());
                        Some(number.ok_or_else(unknown)?)
                    }
                };
                if self.vulkan.is_some() {
                    return Err(fail("there is room for one Vulkan device".to_owned()));
                }
                let vulkan = Vulkan::open(vulkan_options(index, options)).map_err(|error| fail(error.to_string()))?;
                self.add_vulkan(vulkan);
            }
        }
        Ok(())
    }

    fn add_vulkan(&mut self, vulkan: Vulkan) {
        let vulkan = Arc::new(vulkan);
        self.vulkan = Some(vulkan.clone());
        self.all.push(vulkan);
    }

    /// The devices, in order of preference.
    pub fn list(&self) -> Vec<&dyn Device> {
        self.all.iter().map(|device| &**device).collect()
    }

    /// The CPU device, where it is among them.
    pub fn cpu(&self) -> Option<&Cpu> {
        self.cpu.as_deref()
    }

    /// The Vulkan device, where one is among them.
    pub fn vulkan(&self) -> Option<&Vulkan> {
        self.vulkan.as_deref()
    }

    /// Measures the device that is preferred.
    pub fn measure(&self) -> Option<Rates> {
        match &self.vulkan {
            Some(vulkan) => vulkan.measure().ok(),
            None => self.cpu.as_ref().map(|cpu| cpu.measure()),
        }
    }

    /// Measures the read bandwidth alone, where that is less work.
    pub fn measure_bandwidth(&self) -> Option<f64> {
        match &self.vulkan {
            Some(_) => self.measure().map(|rates| rates.read_bytes_per_s),
            None => self.cpu.as_ref().map(|cpu| cpu.measure_bandwidth()),
        }
    }
}

/// `UNICORN_VULKAN_WITHOUT` names capabilities to leave unused, separated by commas, so that what other devices run can
/// be tried; `UNICORN_VULKAN_VALIDATION` turns the validation layer on.
fn vulkan_options(index: Option<usize>, options: &DeviceOptions) -> VulkanOptions {
    let without = std::env::var("UNICORN_VULKAN_WITHOUT").unwrap_or_default();
    VulkanOptions {
        index,
        without: without.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        validation: std::env::var_os("UNICORN_VULKAN_VALIDATION").is_some(),
        cache: cache_folder(),
        profile: options.profile,
    }
}

/// Where pipelines are cached: beside the models.
fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("UNICORN_HOME").or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("unicorn")));
    let home = home.or_else(|| set("HOME").map(|home| home.join(".cache/unicorn")))?;
    Some(home.join("vulkan"))
}

/// What `unicorn devices` tells of a Vulkan device.
#[derive(Clone, Debug, serde::Serialize)]
pub struct VulkanReport {
    /// Its name for `--device`.
    pub device: String,
    /// The product's name; empty where it cannot be used.
    pub product: String,
    /// discrete, integrated, virtual or software.
    pub kind: &'static str,
    /// Driver with its version.
    pub driver: String,
    /// Vulkan version.
    pub api: String,
    /// Invocations of a subgroup as used.
    pub subgroup: u32,
    /// Capabilities that matter to the kernels.
    pub features: Vec<String>,
    /// Memory of the device, bytes.
    pub memory_total_bytes: u64,
    /// Memory to be had now, bytes.
    pub memory_available_bytes: u64,
    /// Measured read bandwidth, bytes a second; software devices are not measured.
    pub read_bytes_per_s: Option<f64>,
    /// Why it cannot be used, where it cannot.
    pub error: Option<String>,
}

/// Describes and measures the Vulkan devices.
///
/// # Errors
/// Where there is no Vulkan: why, in one line.
pub fn vulkan_reports() -> Result<Vec<VulkanReport>, VulkanError> {
    Ok(vulkan::list()?.into_iter().enumerate().map(|(index, listed)| vulkan_report(index, listed)).collect())
}

fn vulkan_report(index: usize, listed: vulkan::Listed) -> VulkanReport {
    let mut report = VulkanReport {
        device: format!("vulkan:{index}"),
        product: String::new(),
        kind: vulkan::Kind::Software.name(),
        driver: String::new(),
        api: String::new(),
        subgroup: 0,
        features: Vec::new(),
        memory_total_bytes: 0,
        memory_available_bytes: 0,
        read_bytes_per_s: None,
        error: None,
    };
    let opened = listed.capabilities.and_then(|_| Vulkan::open(vulkan_options(Some(index), &DeviceOptions::default())));
    let vulkan = match opened {
        Ok(vulkan) => vulkan,
        Err(error) => return VulkanReport { error: Some(error.to_string()), ..report },
    };
    let (own, memory) = (vulkan.capabilities(), vulkan.memory());
    report.product = own.name.clone();
    report.kind = own.kind.name();
    report.driver = own.driver.clone();
    report.api = format!("{}.{}.{}", own.api.0, own.api.1, own.api.2);
    report.subgroup = own.subgroup;
    let matrix = own.cooperative_matrix.map(|shape| format!("cooperative-matrix {}x{}x{}", shape.m, shape.n, shape.k));
    let named =
        [("integer-dot", own.integer_dot), ("unified-memory", own.unified), ("memory-budget", own.memory_budget)];
    let named = named.into_iter().filter(|(_, there)| *there).map(|(name, _)| name.to_owned());
    report.features = matrix.into_iter().chain(named).collect();
    (report.memory_total_bytes, report.memory_available_bytes) = (memory.total_bytes, memory.available_bytes);
    if own.kind != vulkan::Kind::Software {
        match vulkan.measure() {
            Ok(rates) => report.read_bytes_per_s = Some(rates.read_bytes_per_s),
            Err(error) => report.error = Some(error.to_string()),
        }
    }
    report
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
