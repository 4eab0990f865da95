// swift-tools-version: 6.1
import PackageDescription

/// Settings of every Swift target: the GNU names of Glibc, warnings as errors, strict imports.
let swiftSettings: [SwiftSetting] = [
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .unsafeFlags(["-warnings-as-errors"]),
    // Small functions and generic types of one module are used by another's hot loops.
    .unsafeFlags(["-cross-module-optimization"], .when(configuration: .release)),
]

/// Makes O_PATH, statx, renameat2 and the rest visible in `import Glibc`.
let gnuNames: [CSetting] = [.define("_GNU_SOURCE"), .define("_FILE_OFFSET_BITS", to: "64")]

let system = Target.Dependency.product(name: "SystemPackage", package: "swift-system")
let argumentParser = Target.Dependency.product(name: "ArgumentParser", package: "swift-argument-parser")

func module(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .target(
        name: name, dependencies: dependencies, cSettings: gnuNames, swiftSettings: swiftSettings)
}

func tests(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .testTarget(
        name: name, dependencies: dependencies, cSettings: gnuNames, swiftSettings: swiftSettings)
}

let package = Package(
    name: "fusesnap",
    products: [
        .executable(name: "fusesnap", targets: ["fusesnap"]),
        .library(name: "FusesnapReader", targets: ["FusesnapReader"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
    ],
    targets: [
        .systemLibrary(name: "CFuse3", pkgConfig: "fuse3", providers: [.apt(["libfuse3-dev"])]),
        .target(name: "CFuseShim", dependencies: ["CFuse3"], cSettings: gnuNames),
        .target(name: "CLinux", cSettings: gnuNames),
        .target(name: "CArchive", cSettings: gnuNames),
        module("LinuxSystem", ["CLinux", system]),
        module("FuseSession", ["CFuse3", "CFuseShim", "CLinux", "LinuxSystem", system]),
        module("SnapshotRecord", ["CLinux", "LinuxSystem", system]),
        module("SnapshotCore", ["SnapshotRecord", "LinuxSystem", system]),
        module("SourceWatch", ["CLinux", "LinuxSystem", system]),
        module(
            "SnapshotMount",
            ["SnapshotCore", "SnapshotRecord", "SourceWatch", "FuseSession", "LinuxSystem", system]),
        module("ArchiveFormat", ["CArchive", "LinuxSystem", system]),
        module("ControlSocket", ["LinuxSystem", "CLinux", system]),
        module(
            "FusesnapReader", ["ControlSocket", "SnapshotCore", "SnapshotRecord", "LinuxSystem", system]),
        .executableTarget(
            name: "snapshot-sizes", dependencies: ["FusesnapReader"], path: "Examples/SnapshotSizes",
            swiftSettings: swiftSettings),
        .executableTarget(
            name: "fusesnap",
            dependencies: [
                "ArchiveFormat", "FusesnapReader", "SnapshotMount", "SnapshotCore", "SnapshotRecord",
                "SourceWatch", "FuseSession",
                "ControlSocket", "LinuxSystem", "CLinux", system, argumentParser,
            ],
            cSettings: gnuNames, swiftSettings: swiftSettings),
        .target(name: "CTestSupport", path: "Tests/CTestSupport", cSettings: gnuNames),
        .target(
            name: "TestSupport", dependencies: ["CTestSupport", system], path: "Tests/TestSupport",
            cSettings: gnuNames, swiftSettings: swiftSettings),
        .target(
            name: "RedirectModel", dependencies: ["TestSupport"], path: "Tests/RedirectModel",
            cSettings: gnuNames, swiftSettings: swiftSettings + [.unsafeFlags(["-O"])]),
        .executableTarget(
            name: "cutload", dependencies: ["TestSupport", "CTestSupport", system, argumentParser],
            path: "Tests/CutLoad", cSettings: gnuNames, swiftSettings: swiftSettings),
        tests("CutLoadTests", ["cutload"]),
        tests("FuseSessionTests", ["FuseSession", "CFuse3", system]),
        tests("LinuxSystemTests", ["LinuxSystem", "TestSupport", system]),
        tests("SnapshotRecordTests", ["SnapshotRecord", "LinuxSystem", "TestSupport", system]),
        tests(
            "SnapshotCoreTests",
            ["SnapshotCore", "SnapshotRecord", "LinuxSystem", "TestSupport", system]),
        tests(
            "SnapshotMountTests",
            ["SnapshotMount", "SnapshotCore", "SnapshotRecord", "LinuxSystem", "TestSupport", system]),
        tests("RedirectModelTests", ["RedirectModel", "TestSupport"]),
        tests("SourceWatchTests", ["SourceWatch", "LinuxSystem", "TestSupport", system]),
        tests("ArchiveFormatTests", ["ArchiveFormat", "LinuxSystem", "TestSupport", "CTestSupport", system]),
        tests("ConformanceTests", ["TestSupport", "CTestSupport", system]),
        tests("MountedTests", ["TestSupport", "CTestSupport", "cutload", "snapshot-sizes", system]),
        tests("CommandLineTests", ["TestSupport", "CTestSupport", system]),
        tests("ControlSocketTests", ["ControlSocket", "CLinux", system]),
        tests("CommandTests", ["fusesnap", "ControlSocket", argumentParser, system]),
    ],
    swiftLanguageModes: [.v6]
)
