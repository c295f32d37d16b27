package io.github.rerankgrpc.conformance;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonObject;
import io.github.rerankgrpc.RerankException;
import io.github.rerankgrpc.v1.ErrorReason;
import io.github.rerankgrpc.v1.HealthResponse;
import io.github.rerankgrpc.v1.Model;
import io.github.rerankgrpc.v1.RerankResult;
import io.github.rerankgrpc.v1.RerankSummary;
import java.util.Comparator;
import java.util.List;
import java.util.stream.Collectors;

/** What became of a request, as one object of JSON. */
final class Outcomes {
  private static final Comparator<RerankResult> BEST_FIRST =
      Comparator.comparing(RerankResult::getRelevanceScore).reversed().thenComparing(RerankResult::getIndex);
  private static final Gson GSON = new GsonBuilder().disableHtmlEscaping().create();

  private Outcomes() {}

  static String line(JsonObject outcome) {
    JsonObject ordered = new JsonObject(); // the reader looks for lines that begin with the name
    ordered.add("name", outcome.remove("name"));
    outcome.entrySet().forEach(entry -> ordered.add(entry.getKey(), entry.getValue()));
    return GSON.toJson(ordered);
  }

  static JsonObject results(List<RerankResult> results, String model, boolean queryTruncated) {
    JsonArray list = new JsonArray();
    results.forEach(result -> list.add(result(result)));
    JsonObject outcome = new JsonObject();
    outcome.add("results", list);
    outcome.addProperty("model", model);
    outcome.addProperty("query_truncated", queryTruncated);
    return outcome;
  }

  /** Tells the best of the results that a stream has brought. */
  static JsonObject best(List<RerankResult> results, int topN, RerankSummary summary) {
    long most = topN == 0 ? results.size() : topN;
    List<RerankResult> best =
        results.stream().sorted(BEST_FIRST).limit(most).collect(Collectors.toList());
    return results(best, summary.getModel(), summary.getQueryTruncated());
  }

  private static JsonObject result(RerankResult result) {
    JsonObject value = new JsonObject();
    value.addProperty("index", result.getIndex());
    value.addProperty("id", result.getId());
    value.addProperty("relevance_score", result.getRelevanceScore());
    value.addProperty("logit", result.getLogit());
    value.addProperty("tokens", result.getTokens());
    value.addProperty("truncated", result.getTruncated());
    if (result.hasDocument()) {
      value.addProperty("text", result.getDocument().getText());
    }
    if (result.hasBestChunk()) {
      JsonArray span = new JsonArray();
      span.add(result.getBestChunk().getStart());
      span.add(result.getBestChunk().getEnd());
      value.add("best_chunk", span);
    }
    if (result.hasCalibratedScore()) {
      value.addProperty("calibrated_score", result.getCalibratedScore());
    }
    return value;
  }

  static JsonObject models(List<Model> models) {
    JsonArray list = new JsonArray();
    for (Model model : models) {
      JsonArray aliases = new JsonArray();
      model.getAliasesList().forEach(aliases::add);
      JsonObject value = new JsonObject();
      value.addProperty("name", model.getName());
      value.add("aliases", aliases);
      value.addProperty("state", model.getState().name().replace("MODEL_STATE_", ""));
      value.addProperty("serving", model.getServing());
      value.addProperty("accepts_instruction", model.getAcceptsInstruction());
      value.addProperty("max_tokens", model.getMaxTokens());
      if (model.hasCalibration()) {
        value.addProperty("calibration", model.getCalibration().getMethod());
      }
      list.add(value);
    }
    JsonObject outcome = new JsonObject();
    outcome.add("models", list);
    return outcome;
  }

  static JsonObject health(HealthResponse health) {
    JsonObject value = new JsonObject();
    value.addProperty("model", health.getModel());
    value.addProperty("state", health.getState().name().replace("MODEL_STATE_", ""));
    value.addProperty("serving", health.getServing());
    JsonObject outcome = new JsonObject();
    outcome.add("health", value);
    return outcome;
  }

  static JsonObject error(RerankException error) {
    boolean told = error.reason() != ErrorReason.ERROR_REASON_UNSPECIFIED;
    JsonArray fields = new JsonArray();
    error.fields().forEach(violation -> fields.add(violation.getField()));
    String reason = told ? error.reason().name() : error.problem().name();
    return error(reason.replace("ERROR_REASON_", ""), fields, error.retryAfter().isPresent());
  }

  static JsonObject cancelled() {
    return error("CANCELLED", new JsonArray(), false);
  }

  private static JsonObject error(String reason, JsonArray fields, boolean retry) {
    JsonObject value = new JsonObject();
    value.addProperty("reason", reason);
    value.add("fields", fields);
    value.addProperty("retry", retry);
    JsonObject outcome = new JsonObject();
    outcome.add("error", value);
    return outcome;
  }
}
