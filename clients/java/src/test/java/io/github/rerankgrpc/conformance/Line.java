package io.github.rerankgrpc.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.util.JsonFormat;
import io.github.rerankgrpc.v1.RerankRequest;
import io.github.rerankgrpc.v1.StreamRerankRequest;
import java.time.Duration;

/** A line of the list, its request repeated as it says. */
final class Line {
  final String name;
  final String method;
  final String caller;
  final Duration timeout;
  final Duration cancelAfter;
  final boolean leaves;
  private final JsonObject request;

  Line(String text) {
    JsonObject line = JsonParser.parseString(text).getAsJsonObject();
    name = line.get("name").getAsString();
    method = line.get("method").getAsString();
    caller = line.has("caller") ? line.get("caller").getAsString() : "full";
    timeout = line.has("timeout_ms") ? millis(line, "timeout_ms") : Duration.ofSeconds(30);
    cancelAfter = line.has("cancel_after_ms") ? millis(line, "cancel_after_ms") : null;
    leaves = line.has("cancel_after_messages");
    request = line.getAsJsonObject("request");
    if (line.has("repeat")) {
      repeat(request, line.getAsJsonObject("repeat"));
    }
  }

  RerankRequest rerank() throws InvalidProtocolBufferException {
    RerankRequest.Builder builder = RerankRequest.newBuilder();
    JsonFormat.parser().merge(request.toString(), builder);
    return builder.build();
  }

  StreamRerankRequest stream() throws InvalidProtocolBufferException {
    StreamRerankRequest.Builder builder = StreamRerankRequest.newBuilder();
    JsonFormat.parser().merge(request.toString(), builder);
    return builder.build();
  }

  /** The model that a request of Health names. */
  String model() {
    return request.has("model") ? request.get("model").getAsString() : "";
  }

  private static Duration millis(JsonObject line, String name) {
    return Duration.ofMillis(line.get(name).getAsLong());
  }

  private static void repeat(JsonObject request, JsonObject times) {
    JsonArray documents = request.getAsJsonArray("documents");
    JsonObject first = documents.get(0).getAsJsonObject();
    repeat(request, "query", times.get("query"));
    repeat(first, "id", times.get("id"));
    repeat(first, "text", times.get("text"));
    if (times.has("documents")) {
      JsonArray many = new JsonArray();
      for (int number = 0; number < times.get("documents").getAsInt(); number++) {
        JsonObject copy = first.deepCopy();
        copy.addProperty("text", first.get("text").getAsString() + " " + number);
        many.add(copy);
      }
      request.add("documents", many);
    }
  }

  private static void repeat(JsonObject object, String field, JsonElement times) {
    if (times != null) {
      object.addProperty(field, object.get(field).getAsString().repeat(times.getAsInt()));
    }
  }
}
