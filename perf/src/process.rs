//! What the kernel says about processes: CPU time, memory, descendants; and this thread's own limits.
//! Owns the reading of CPU clocks and of `/proc` (proc(5)). A process under test is always taken with all its threads
//! and descendants, so the workers of a master process are counted.

use std::collections::BTreeSet;
use std::fs;
use std::io;

/// CPU time spent. `on_cpu_ns` is exact (the scheduler's own account); user and system come in the
/// kernel's ticks of 10 ms and are good for their proportion only.
#[derive(Clone, Copy, Default, Debug)]
pub struct CpuTime {
    pub on_cpu_ns: u64,
    pub user_ns: u64,
    pub system_ns: u64,
}

impl CpuTime {
    /// What was spent after `earlier`. A process that ended in between takes its time with it.
    pub fn since(self, earlier: &CpuTime) -> CpuTime {
        CpuTime {
            on_cpu_ns: self.on_cpu_ns.saturating_sub(earlier.on_cpu_ns),
            user_ns: self.user_ns.saturating_sub(earlier.user_ns),
            system_ns: self.system_ns.saturating_sub(earlier.system_ns),
        }
    }
}

/// CPU time of `pids`, their threads and descendants so far. Errors if one of `pids` is not running.
pub fn cpu_time(pids: &[u32]) -> Result<CpuTime, String> {
    let mut sum = CpuTime::default();
    for pid in with_descendants(pids)? {
        match clock_of(pid).and_then(read_clock) {
            Ok(on_cpu_ns) => sum.on_cpu_ns += on_cpu_ns,
            Err(_) if !pids.contains(&pid) => continue, // a descendant that has just ended
            Err(error) => return Err(format!("process {pid}: {error}")),
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = after_name(&stat).skip(11);
        sum.user_ns += number(fields.next()) * tick_ns();
        sum.system_ns += number(fields.next()) * tick_ns();
    }
    Ok(sum)
}

/// CPU time of the calling thread so far, in nanoseconds.
pub fn own_cpu_ns() -> Result<u64, String> {
    read_clock(libc::CLOCK_THREAD_CPUTIME_ID).map_err(|error| format!("own CPU time: {error}"))
}

/// The clock of the CPU time of a process, with all its threads, those that ended included:
/// what `clock_getcpuclockid(3)` computes. An unknown process shows when the clock is read.
fn clock_of(pid: u32) -> io::Result<libc::clockid_t> {
    /// Linux numbers no process higher; a higher number would spill into other clocks.
    const PID_MAX: u32 = 1 << 22;
    const SCHEDULER_TIME: libc::clockid_t = 2;
    if !(1..=PID_MAX).contains(&pid) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(!(pid as libc::clockid_t) << 3 | SCHEDULER_TIME)
}

fn read_clock(clock: libc::clockid_t) -> io::Result<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes into the struct, which lives through the call.
    if unsafe { libc::clock_gettime(clock, &mut time) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub resident: u64,
    /// The part that is not backed by files: what the process allocated and touched.
    pub anonymous: u64,
}

/// Memory of one process now.
pub fn memory(pid: u32) -> Result<Memory, String> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).map_err(|error| format!("process {pid}: {error}"))?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        number(line.and_then(|line| line.split_whitespace().next())) * 1024
    };
    Ok(Memory {
        resident: kib("VmRSS:"),
        anonymous: kib("RssAnon:"),
    })
}

/// Memory all TCP sockets of the machine hold in the kernel, in bytes.
pub fn tcp_memory() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:"));
    let mut words = line.unwrap_or("").split(' ');
    let pages = words.find(|word| *word == "mem").and(words.next());
    number(pages) * 4096
}

/// `pids` and every process below them.
fn with_descendants(pids: &[u32]) -> Result<BTreeSet<u32>, String> {
    let mut family: BTreeSet<u32> = pids.iter().copied().collect();
    if family.is_empty() {
        return Ok(family);
    }
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").map_err(|error| format!("/proc: {error}"))? {
        let Some(pid) = entry
            .ok()
            .and_then(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        else {
            continue;
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        parents.push((pid, number(after_name(&stat).nth(1)) as u32));
    }
    loop {
        let before = family.len();
        for &(pid, parent) in &parents {
            if family.contains(&parent) {
                family.insert(pid);
            }
        }
        if family.len() == before {
            return Ok(family);
        }
    }
}

/// The fields of a `stat` line from the state on: the name before may hold spaces and brackets.
fn after_name(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ')
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn tick_ns() -> u64 {
    // SAFETY: takes no pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    1_000_000_000 / u64::try_from(per_second).unwrap_or(100).max(1)
}

/// Keeps the calling thread, and those it starts, on one core.
pub fn pin(core: usize) -> io::Result<()> {
    // SAFETY: the set is plain bits, zeroed, and lives through the call; CPU_SET checks its bounds.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets this process open as many files as it is allowed to. How many that is.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls only read or write the struct, which lives through them.
    let failed = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) < 0 || {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) < 0
        }
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_memory_of_a_process_and_its_child_are_read() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("5").spawn().unwrap();
        assert!(with_descendants(&[own]).unwrap().contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();

        let before = (cpu_time(&[own]).unwrap(), own_cpu_ns().unwrap());
        let started = std::time::Instant::now();
        while started.elapsed().as_millis() < 60 {}
        let own_spent = own_cpu_ns().unwrap() - before.1;
        let spent = cpu_time(&[own]).unwrap().since(&before.0);
        assert!(spent.on_cpu_ns >= own_spent);
        assert!(own_spent > 1_000_000);

        let memory = memory(own).unwrap();
        assert!(memory.resident >= memory.anonymous && memory.anonymous > 0);
        assert!(cpu_time(&[u32::MAX >> 1]).is_err());
    }
}
