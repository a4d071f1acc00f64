# Prints what a container looks like from inside, in sections for facts.py. Files of /proc are read
# as they are: what they mean is decided there. /more, if a case wrote one, is run at the end.
section() { printf '\n@@ %s\n' "$1"; }
count() { echo "processes $#"; }
show() { cat "$@" 2>/dev/null; }
# A system call filter may forbid what the probe itself would need: never fail.
exec 2>/dev/null

section misc
echo "pid $$"
echo "ppid $PPID"
echo "umask $(umask)"
echo "pwd $(pwd)"
echo "hostname $(hostname)"
echo "domainname $(show /proc/sys/kernel/domainname)"
echo "oom_score_adj $(show /proc/$$/oom_score_adj)"
echo "tty $(tty)"
echo "size $(stty size)"
echo "personality $(show /proc/$$/personality)"
count /proc/[0-9]*/comm
[ -r /etc/passwd ] && echo "id $(id)"

section status
show /proc/$$/status
section limits
show /proc/$$/limits
section mounts
show /proc/$$/mountinfo
section fds
for fd in 0 1 2; do echo "$fd $(readlink /proc/$$/fd/$fd)"; done
section env
env
section dev
find /dev | sort | while read -r path; do stat -c '%n|%F|%a|%u:%g|%t:%T' "$path"; readlink "$path"; done
section paths
stat -c '%n|%F|%a|%u:%g|%t:%T' / /etc/passwd /root /tmp /dev /proc/keys /proc/timer_list \
    /proc/sys /sys/firmware /sys/kernel
section sysctl
cd /proc/sys && grep -s . kernel/msgmax kernel/msgmnb kernel/msgmni kernel/sem kernel/shmmni \
    kernel/shm_rmid_forced fs/mqueue/* net/ipv4/ip_unprivileged_port_start \
    net/ipv4/ip_local_port_range net/ipv4/ping_group_range net/core/somaxconn
section net
show /proc/net/dev
section cgroup
cd /sys/fs/cgroup && grep -s . memory.max memory.low memory.swap.max pids.max cpu.max cpu.weight \
    memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes memory/memory.memsw.limit_in_bytes \
    pids/pids.max cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us
section output
cd "$OLDPWD"
exec 2>&1
[ -r /more ] && . /more
exit ${CODE:-0}
