#if canImport(FoundationEssentials)
    internal import FoundationEssentials
#else
    internal import Foundation
#endif

/// One change since the cut, as it goes over the socket and is printed. `Docs/Json.md` is its description.
package struct ChangeItem: Codable, Sendable, Equatable {
    package struct Range: Codable, Sendable, Equatable {
        package var offset: Int64
        package var length: Int64

        package init(offset: Int64, length: Int64) {
            self.offset = offset
            self.length = length
        }
    }

    /// `data`, `attributes`, `created`, `removed`, `renamed`, `linked`, `entries`, `past_mount`.
    package var kinds: [String]
    /// `file`, `directory`, `symlink`, `fifo`, `socket`, `char`, `block`; nil: not known.
    package var type: String?
    package var inode: UInt64
    package var pathAtCut: ChangePath?
    package var path: ChangePath?
    package var ranges: [Range]
    package var bytes: Int64
    package var attributes: [String]
    package var entries: Int?
    /// On the socket only: the next item goes on with the ranges of this one.
    package var continues: Bool?

    package init(
        kinds: [String], type: String?, inode: UInt64, pathAtCut: [UInt8]?, path: [UInt8]?, ranges: [Range] = [],
        bytes: Int64 = 0, attributes: [String] = [], entries: Int? = nil
    ) {
        self.kinds = kinds
        self.type = type
        self.inode = inode
        self.pathAtCut = pathAtCut.map { ChangePath($0) }
        self.path = path.map { ChangePath($0) }
        self.ranges = ranges
        self.bytes = bytes
        self.attributes = attributes
        self.entries = entries
    }

    enum CodingKeys: String, CodingKey {
        case kinds, type, inode, path, ranges, bytes, attributes, entries, continues
        case pathAtCut = "path_at_cut"
        case pathBase64 = "path_base64"
        case pathAtCutBase64 = "path_at_cut_base64"
    }

    package init(from decoder: any Decoder) throws {
        let fields = try decoder.container(keyedBy: CodingKeys.self)
        kinds = try fields.decode([String].self, forKey: .kinds)
        type = try fields.decodeIfPresent(String.self, forKey: .type)
        inode = try fields.decode(UInt64.self, forKey: .inode)
        func path(_ text: CodingKeys, _ base64: CodingKeys) throws -> ChangePath? {
            if let encoded = try fields.decodeIfPresent(String.self, forKey: base64) {
                guard let data = Data(base64Encoded: encoded) else {
                    throw DecodingError.dataCorruptedError(
                        forKey: base64, in: fields, debugDescription: "no base64")
                }
                return ChangePath([UInt8](data))
            }
            return try fields.decodeIfPresent(String.self, forKey: text).map { ChangePath(Array($0.utf8)) }
        }
        pathAtCut = try path(.pathAtCut, .pathAtCutBase64)
        self.path = try path(.path, .pathBase64)
        ranges = try fields.decodeIfPresent([Range].self, forKey: .ranges) ?? []
        bytes = try fields.decode(Int64.self, forKey: .bytes)
        attributes = try fields.decodeIfPresent([String].self, forKey: .attributes) ?? []
        entries = try fields.decodeIfPresent(Int.self, forKey: .entries)
        continues = try fields.decodeIfPresent(Bool.self, forKey: .continues)
    }

    /// Both paths are there, as null where there is none.
    package func encode(to encoder: any Encoder) throws {
        var fields = encoder.container(keyedBy: CodingKeys.self)
        try fields.encode(kinds, forKey: .kinds)
        try fields.encode(type, forKey: .type)
        try fields.encode(inode, forKey: .inode)
        try fields.encode(pathAtCut?.text, forKey: .pathAtCut)
        try fields.encode(path?.text, forKey: .path)
        try fields.encodeIfPresent(pathAtCut?.base64, forKey: .pathAtCutBase64)
        try fields.encodeIfPresent(path?.base64, forKey: .pathBase64)
        try fields.encode(bytes, forKey: .bytes)
        if !ranges.isEmpty { try fields.encode(ranges, forKey: .ranges) }
        if !attributes.isEmpty { try fields.encode(attributes, forKey: .attributes) }
        try fields.encodeIfPresent(entries, forKey: .entries)
        try fields.encodeIfPresent(continues, forKey: .continues)
    }
}

/// A path's bytes, which need not be UTF-8.
package struct ChangePath: Sendable, Equatable {
    package var bytes: [UInt8]

    package init(_ bytes: [UInt8]) {
        self.bytes = bytes
    }

    /// With replacement characters where it is not UTF-8. The root is ".".
    package var text: String { bytes.isEmpty ? "." : String(decoding: bytes, as: UTF8.self) }

    /// Where it is not UTF-8.
    var base64: String? {
        text.utf8.elementsEqual(bytes) || bytes.isEmpty ? nil : Data(bytes).base64EncodedString()
    }
}

/// What follows the changes.
package struct ChangesReport: Codable, Sendable, Equatable {
    /// The instant of the cut, RFC 3339.
    package var started: String
    package var count: Int
    /// Whether the snapshot is exact, and so the list complete.
    package var exact: Bool
    package var reason: String?

    package init(started: String, count: Int, exact: Bool, reason: String?) {
        self.started = started
        self.count = count
        self.exact = exact
        self.reason = reason
    }
}

/// Packs changes into lines that are no longer than they may be.
final class ChangePacker {
    private let send: ([UInt8]) -> Bool
    private var items: [[UInt8]] = []
    private var bytes = 0

    private static let head = Array("{\"changes\":[".utf8)
    private static let tail = Array("],\"protocol\":\(ControlProtocol.version)}\n".utf8)
    private static let itemBytesMax = ControlProtocol.lineBytesMax - head.count - tail.count
    /// A range takes at most 60 bytes, and paths should have room beside them.
    private static let rangesMax = 400

    /// `send` answers false where nobody takes more.
    init(_ send: @escaping ([UInt8]) -> Bool) {
        self.send = send
    }

    /// False where nobody takes more. Throws where the paths alone are too long for a line.
    func add(_ item: ChangeItem) throws(ControlFailure) -> Bool {
        var rest = item.ranges[...]
        var piece = item
        repeat {
            piece.ranges = Array(rest.prefix(Self.rangesMax))
            rest = rest.dropFirst(Self.rangesMax)
            piece.continues = rest.isEmpty ? nil : true
            let encoded = Array(ControlLine.encode(piece).dropLast())
            if encoded.count > Self.itemBytesMax {
                throw ControlFailure(
                    .failed, "the path of inode \(item.inode) is too long for the control socket")
            }
            if bytes + encoded.count + 1 > Self.itemBytesMax, !flush() { return false }
            items.append(encoded)
            bytes += encoded.count + 1
        } while !rest.isEmpty
        return true
    }

    func flush() -> Bool {
        if items.isEmpty { return true }
        defer {
            items = []
            bytes = 0
        }
        return send(Self.head + Array(items.joined(separator: [UInt8(ascii: ",")])) + Self.tail)
    }
}
