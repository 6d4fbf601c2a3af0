// Chat with a bundle of `edgeformer export MODEL -o DIR --to coreai --precision q4f16`: `swift run chat DIR "A question"`.
//
// NEVER COMPILED BY US: we have no Mac. Written after the README of Apple's package coreai-models, which this needs (macOS 27,
// Xcode 27): https://github.com/apple/coreai-models, product CoreAILanguageModels. Please report what it takes to build it.
import CoreAILanguageModels
import Foundation
import FoundationModels

@main
struct Chat {
    static func main() async throws {
        let arguments = CommandLine.arguments
        guard arguments.count == 3 else {
            print("usage: chat DIR QUESTION")
            return
        }
        let folder = URL(fileURLWithPath: arguments[1], isDirectory: true)
        let model = try await CoreAILanguageModel(resourcesAt: folder)
        let session = LanguageModelSession(model: model)
        let answer = try await session.respond(to: arguments[2])
        print(answer.content)
    }
}
