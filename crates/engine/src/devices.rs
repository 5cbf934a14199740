//! The devices there are. A new device is one crate and one line of `Devices::add`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use cpu::{Cpu, CpuInfo, CpuOptions};
use graph::{Device, Part, Rates, reference::Reference};
use vulkan::{Vulkan, VulkanError, VulkanOptions};

use crate::{EngineError, self_check::Refusing, tune};

/// How devices are set up.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Threads of the CPU device; `None` takes one a core.
    pub threads: Option<usize>,
    /// Instruction set of the CPU device; `None` takes the best.
    pub isa: Option<String>,
    /// Whether the kernels of Vulkan devices are timed.
    pub profile: bool,
    /// How long a submit to a Vulkan device may last by estimate: [`VulkanOptions::submit_bound`]. `None` takes what the
    /// environment says, else the rule.
    pub submit_bound: Option<Duration>,
}

/// A set of open devices, in order of preference.
pub struct Devices {
    all: Vec<Arc<dyn Device>>,
    cpu: Option<Arc<Cpu>>,
    vulkan: Option<Arc<Vulkan>>,
    /// How the Vulkan device was opened.
    vulkan_options: VulkanOptions,
    options: DeviceOptions,
    /// What is to be told of them.
    notices: Vec<String>,
}

impl Devices {
    /// Opens devices by name, separated by commas: `auto` (the CPU, until published models have run on more kinds of GPU),
    /// `cpu`, `vulkan` (the first that is no software), `vulkan:N` (by number), `reference` (the slow oracle).
    ///
    /// # Errors
    /// Where a device is unknown, not part of this build, or cannot be opened.
    pub fn open(names: &str, options: &DeviceOptions) -> Result<Devices, EngineError> {
        let mut devices = Devices {
            all: Vec::new(),
            cpu: None,
            vulkan: None,
            vulkan_options: VulkanOptions::default(),
            options: options.clone(),
            notices: Vec::new(),
        };
        for name in names.split(',').map(str::trim) {
            devices.add(name, options)?;
        }
        Ok(devices)
    }

    fn add(&mut self, name: &str, options: &DeviceOptions) -> Result<(), EngineError> {
        let fail = |reason: String| EngineError::Device { name: name.to_owned(), reason };
        match name {
            "auto" => self.add("cpu", options)?,
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
                self.vulkan_options = vulkan_options(index, options).map_err(fail)?;
                let vulkan = Vulkan::open(self.vulkan_options.clone()).map_err(|error| fail(error.to_string()))?;
                self.notices.extend(tune::apply(&vulkan));
                let vulkan = Arc::new(vulkan);
                self.vulkan = Some(vulkan.clone());
                self.all.push(vulkan);
            }
        }
        Ok(())
    }

    /// Adds the CPU, for what the others do not take. Returns whether it was not there yet.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn add_fallback(&mut self) -> Result<bool, EngineError> {
        let is_new = self.cpu.is_none();
        if is_new {
            self.add("cpu", &self.options.clone())?;
        }
        Ok(is_new)
    }

    /// What others are checked by: the CPU, whether it is among them or not.
    pub(crate) fn oracle(&self) -> Result<Arc<Cpu>, EngineError> {
        match &self.cpu {
            Some(cpu) => Ok(cpu.clone()),
            None => {
                let alone = Devices::open("cpu", &self.options)?;
                Ok(alone.cpu.expect("just opened"))
            }
        }
    }

    /// Opens the Vulkan device anew, as after it was lost; with one capability more left unused where one is named.
    pub(crate) fn reopen_vulkan(&mut self, without: Option<&str>) -> Result<(), EngineError> {
        let Some(old) = self.vulkan.take() else { return Ok(()) };
        let fail = |error: VulkanError| EngineError::Device { name: old.name().to_owned(), reason: error.to_string() };
        self.vulkan_options.without.extend(without.map(str::to_owned));
        let vulkan = Vulkan::open(self.vulkan_options.clone()).map_err(fail)?;
        // Of other capabilities what was chosen says nothing, which is no news: they are left unused aloud.
        let _ = tune::apply(&vulkan);
        let vulkan = Arc::new(vulkan);
        for device in self.all.iter_mut().filter(|device| device.name() == old.name()) {
            *device = vulkan.clone();
        }
        self.vulkan = Some(vulkan);
        Ok(())
    }

    /// Goes on without the Vulkan device, on the CPU.
    pub(crate) fn give_up_vulkan(&mut self) -> Result<(), EngineError> {
        self.vulkan = None;
        self.all.retain(|device| !device.name().starts_with("vulkan"));
        self.add_fallback().map(|_| ())
    }

    /// Trusts the Vulkan device with these units no more.
    pub(crate) fn refuse(&mut self, units: Vec<(Part, Option<u32>)>, reason: String) {
        let Some(vulkan) = &self.vulkan else { return };
        for device in self.all.iter_mut().filter(|device| device.name() == vulkan.name()) {
            *device = Arc::new(Refusing { inner: device.clone(), units: units.clone(), reason: reason.clone() });
        }
    }

    /// What is to be told of them.
    pub(crate) fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The devices, in order of preference.
    pub fn list(&self) -> Vec<&dyn Device> {
        self.all.iter().map(|device| &**device).collect()
    }

    /// The CPU device, where it is among them.
    pub fn cpu(&self) -> Option<&Cpu> {
        self.cpu.as_deref()
    }

    pub(crate) fn shared_cpu(&self) -> Option<Arc<Cpu>> {
        self.cpu.clone()
    }

    /// The Vulkan device, where one is among them.
    pub fn vulkan(&self) -> Option<&Vulkan> {
        self.vulkan.as_deref()
    }

    /// Measures the device that is preferred.
    pub fn measure(&self) -> Option<Rates> {
        match &self.vulkan {
            Some(vulkan) => measure(vulkan),
            None => self.cpu.as_ref().map(|cpu| cpu.measure()),
        }
    }

    /// Measures those of these names: [`Device::rates`] knows what came of it.
    pub fn measure_all(&self, names: &[&str]) {
        let is_named = |device: &dyn Device| names.contains(&device.name());
        if let Some(vulkan) = self.vulkan.as_deref().filter(|device| is_named(*device)) {
            measure_with(vulkan, Vulkan::measure_kernels);
        }
        if let Some(cpu) = self.cpu.as_deref().filter(|device| is_named(*device)) {
            cpu.measure();
        }
    }

    /// Measures the read bandwidth alone, where that is less work.
    pub fn measure_bandwidth(&self) -> Option<f64> {
        match &self.vulkan {
            Some(vulkan) => measure(vulkan).map(|rates| rates.read_bytes_per_s),
            None => self.cpu.as_ref().map(|cpu| cpu.measure_bandwidth()),
        }
    }
}

/// A processor that plays a device has no roof of its own: shares of what was measured would mean nothing.
fn measure(vulkan: &Vulkan) -> Option<Rates> {
    measure_with(vulkan, Vulkan::measure)
}

fn measure_with(vulkan: &Vulkan, how: impl Fn(&Vulkan) -> Result<Rates, VulkanError>) -> Option<Rates> {
    let is_software = vulkan.capabilities().kind == vulkan::Kind::Software;
    if is_software { None } else { how(vulkan).ok() }
}

/// A GPU of this machine that `device` does not name, in a line that says how to ask for it.
pub fn unused_gpu(device: &str) -> Option<String> {
    if device.contains("vulkan") {
        return None;
    }
    let all = vulkan::list().ok()?;
    let (index, gpu) = all.into_iter().enumerate().find_map(|(index, listed)| {
        let found = listed.capabilities.ok().filter(|found| found.kind != vulkan::Kind::Software);
        found.map(|found| (index, found.name))
    })?;
    Some(format!("vulkan:{index} ({gpu}) is not used: --device vulkan:{index} asks for it"))
}

/// `UNICORN_VULKAN_WITHOUT` names capabilities to leave unused, separated by commas, so that what other devices run can
/// be tried; `UNICORN_VULKAN_SUBMIT_MS` is how many milliseconds a submit may last by estimate, 0 for any number;
/// `UNICORN_VULKAN_VALIDATION` turns the validation layer on.
fn vulkan_options(index: Option<usize>, options: &DeviceOptions) -> Result<VulkanOptions, String> {
    let without = std::env::var("UNICORN_VULKAN_WITHOUT").unwrap_or_default();
    let submit_ms = std::env::var("UNICORN_VULKAN_SUBMIT_MS").unwrap_or_default();
    let submit_bound = match submit_ms.trim() {
        "" => None,
        text => {
            let seconds = text.parse::<f64>().ok().map(|ms| ms / 1e3);
            let bound = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            Some(bound.ok_or_else(|| format!("UNICORN_VULKAN_SUBMIT_MS is {text:?}: expected milliseconds, or 0"))?)
        }
    };
    Ok(VulkanOptions {
        index,
        without: without.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        validation: std::env::var_os("UNICORN_VULKAN_VALIDATION").is_some(),
        cache: cache_folder(),
        profile: options.profile,
        submit_bound: options.submit_bound.or(submit_bound),
    })
}

/// Where pipelines are cached: beside the models.
fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("UNICORN_HOME").or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("unicorn")));
    let home = home.or_else(|| set("HOME").map(|home| home.join(".cache/unicorn")))?;
    Some(home.join("vulkan"))
}

/// Vulkan devices of this machine, software ones too.
///
/// # Errors
/// Where there is no Vulkan.
pub fn vulkan_count() -> Result<usize, VulkanError> {
    Ok(vulkan::list()?.len())
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
    let opened = listed.capabilities.map_err(|error| error.to_string()).and_then(|_| {
        let options = vulkan_options(Some(index), &DeviceOptions::default())?;
        Vulkan::open(options).map_err(|error| error.to_string())
    });
    let vulkan = match opened {
        Ok(vulkan) => vulkan,
        Err(error) => return VulkanReport { error: Some(error), ..report },
    };
    let (own, memory) = (vulkan.capabilities(), vulkan.memory());
    report.product = own.name.clone();
    report.kind = own.kind.name();
    report.driver = own.driver.clone();
    report.api = format!("{}.{}.{}", own.api.0, own.api.1, own.api.2);
    report.subgroup = own.subgroup;
    let matrix = own.cooperative_matrix.map(|shape| format!("cooperative-matrix {}x{}x{}", shape.m, shape.n, shape.k));
    let named = [
        ("matrix-fragments", own.matrix_fragments),
        ("integer-dot", own.integer_dot),
        ("unified-memory", own.unified),
        ("memory-budget", own.memory_budget),
    ];
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
