import Testing

@testable import fusesnap

struct AppArmorRuleTests {
    /// As Ubuntu's profile writes its rules.
    private let rule = AppArmorRule(
        profile: """
            profile fusermount3 /usr/bin/fusermount3 {
              capability sys_admin,
              mount fstype=@{fuse_types} options=(nosuid,nodev) options in (ro,rw,noatime) -> @{HOME}/**/,
              mount fstype=@{fuse_types} options=(nosuid,nodev,rw) -> /mnt/{,**/},
              mount fstype=@{fuse_types} options=(nosuid,nodev,rw) -> @{run}/user/@{uid}/**/,
              # mount fstype=@{fuse_types} options=(nosuid,nodev,rw) -> /data/{,**/},
              mount fstype=@{fuse_types} options=(nosuid,nodev,rw) -> /srv/app*/,
              umount /opt/**/,
            }
            """)

    @Test(arguments: ["/mnt", "/mnt/a/b", "/home/me/data", "/run/user/1000/x"])
    func `places of the rules are allowed`(_ path: String) {
        #expect(rule.allows(path))
    }

    @Test(arguments: ["/data", "/data/x", "/opt/x", "/mntx", "/var/lib/data", "/"])
    func `other places are not`(_ path: String) {
        #expect(!rule.allows(path))
    }
}
