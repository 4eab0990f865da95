import Testing

@testable import fusesnap

struct MountOptionsTests {
    @Test func `options of the kernel are passed on in their order`() throws {
        let options = try MountOptions(parsing: ["allow_other,ro", "nosuid,rw"])
        #expect(options.kernelOptions == ["allow_other", "ro", "nosuid", "rw"])
        #expect(options.allowsOthers)
        #expect(!options.isReadOnly)
    }

    @Test func `options of fusesnap are taken`() throws {
        let options = try MountOptions(parsing: [
            "io=write-through,snapshot_dir=.snap,attr_timeout=0.5,entry_timeout=2,negative_timeout=0,max_threads=8"
        ])
        #expect(options.kernelOptions.isEmpty)
        #expect(options.snapshotDirectory == ".snap")
        #expect(options.attributeTimeoutSeconds == 0.5)
        #expect(options.entryTimeoutSeconds == 2)
        #expect(options.negativeTimeoutSeconds == 0)
        #expect(options.threadsMax == 8)
    }

    @Test func `what fstab means for others is passed over`() throws {
        let options = try MountOptions(parsing: [
            "defaults,async,relatime,noauto,nofail,_netdev,user,x-systemd.automount,x-systemd.requires=a.mount,comment=b,,"
        ])
        #expect(options == MountOptions())
    }

    @Test(arguments: [
        "allow_root", "auto_unmount", "nonsense", "io=fast", "io=", "io", "snapshot_dir=a/b",
        "snapshot_dir=..",
        "attr_timeout=-1", "attr_timeout=nan", "entry_timeout=x", "negative_timeout=inf",
        "max_threads=0",
        "max_threads=9999", "subtype=other", "foo=bar", "ro=1", "fsname=",
    ])
    func `an option that cannot be had is refused by name`(_ option: String) {
        let refusal = #expect(throws: MountOptions.Refusal.self) { try MountOptions(parsing: ["ro," + option]) }
        let name = option.split(separator: "=").first.map(String.init) ?? option
        #expect(refusal?.message.contains(name) == true)
    }

    @Test func `a comma within a value is escaped, and escaped again for libfuse`() throws {
        let options = try MountOptions(parsing: ["fsname=a\\,b,ro"])
        #expect(options.sourceName == "a,b")
        #expect(
            options.sessionOptions(source: "/data", isRoot: true) == [
                "ro", "allow_other", "default_permissions", "fsname=a\\,b", "subtype=fusesnap",
            ])
        #expect(
            MountOptions().sessionOptions(source: "/da,ta", isRoot: false) == [
                "default_permissions", "fsname=/da\\,ta", "subtype=fusesnap",
            ])
    }
}

struct ByteSizeTests {
    @Test(arguments: [
        ("0", 0), ("512", 512), ("64K", 65_536), ("3m", 3_145_728), ("1G", 1_073_741_824),
        ("2T", 2_199_023_255_552),
    ])
    func `a size is read`(_ text: String, _ bytes: UInt64) {
        #expect(ByteSize(text)?.bytes == bytes)
    }

    @Test(arguments: ["", "K", "-1", "+1", "1.5G", "1 G", "1KB", "10P", "99999999999T", "99999999999999999999"])
    func `what is no size is refused`(_ text: String) {
        #expect(ByteSize(text) == nil)
    }

    @Test(
        arguments: [
            (0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1024, "1.0 KiB"),
            (1536, "1.5 KiB"), (1_048_576, "1.0 MiB"), (1_073_741_823, "1023.9 MiB"), (UInt64.max, "15.9 EiB"),
        ] as [(UInt64, String)])
    func `a size is written in the largest unit`(_ bytes: UInt64, _ text: String) {
        #expect(ByteSize(bytes: bytes).text == text)
    }
}
