//! What the guest is told of files: struct fuse_attr, struct fuse_entry_out.

use rustix::fs::Statx;

use crate::wire::Out;

/// For how long the guest may believe what it was told, in seconds, where changes are heard of. It
/// need not end; what inotify(7) has lost because it was too much is put right so.
pub const BELIEVED_S: u64 = 30;

/// new_encode_dev() of the kernel.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

/// struct fuse_attr.
pub fn attributes(out: &mut Out, stat: &Statx, inode: u64) {
    let times = [&stat.stx_atime, &stat.stx_mtime, &stat.stx_ctime];
    out.u64(inode).u64(stat.stx_size).u64(stat.stx_blocks);
    for time in times {
        out.u64(time.tv_sec as u64);
    }
    for time in times {
        out.u32(time.tv_nsec);
    }
    out.u32(stat.stx_mode.into()).u32(stat.stx_nlink).u32(stat.stx_uid).u32(stat.stx_gid);
    out.u32(encode_device(stat.stx_rdev_major, stat.stx_rdev_minor));
    out.u32(stat.stx_blksize).u32(0);
}

/// The beginning of struct fuse_entry_out; node 0 says that there is no such entry.
pub fn entry(out: &mut Out, node: u64, entry_s: u64, attributes_s: u64) {
    out.u64(node).u64(0).u64(entry_s).u64(attributes_s).u32(0).u32(0);
}
