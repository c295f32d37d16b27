package io.github.rerankgrpc;

import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import io.github.rerankgrpc.RerankException.Details;
import io.github.rerankgrpc.RerankException.Problem;
import io.github.rerankgrpc.v1.ErrorReason;
import io.grpc.Status;
import java.util.List;
import java.util.Map;

/** The texts of a request, of which protobuf would silently change those that UTF-8 cannot hold. */
final class Texts {
  private Texts() {}

  /** Throws RerankException, which names the field, if a text holds half of a surrogate pair. */
  static void check(Message request) {
    String field = broken(request, "");
    if (field == null) {
      return;
    }
    String description = "holds half of a surrogate pair, which UTF-8 cannot hold";
    BadRequest.FieldViolation violation =
        BadRequest.FieldViolation.newBuilder().setField(field).setDescription(description).build();
    throw new RerankException(
        field + ": " + description,
        Status.Code.INVALID_ARGUMENT,
        ErrorReason.ERROR_REASON_INVALID_REQUEST,
        Problem.NONE,
        new Details(List.of(violation), null, Map.of()),
        null);
  }

  /** Names the first field with such a text, such as documents[3].text; null if there is none. */
  private static String broken(Message message, String path) {
    for (Map.Entry<FieldDescriptor, Object> entry : message.getAllFields().entrySet()) {
      String field = broken(entry.getValue(), path + entry.getKey().getName());
      if (field != null) {
        return field;
      }
    }
    return null;
  }

  private static String broken(Object value, String path) {
    if (value instanceof String) {
      return hasLoneSurrogate((String) value) ? path : null;
    }
    if (value instanceof Message) {
      return broken((Message) value, path + ".");
    }
    if (value instanceof List) {
      int index = 0;
      for (Object item : (List<?>) value) {
        String field = broken(item, path + "[" + index++ + "]");
        if (field != null) {
          return field;
        }
      }
    }
    return null;
  }

  private static boolean hasLoneSurrogate(String text) {
    for (int index = 0; index < text.length(); index++) {
      if (!Character.isSurrogate(text.charAt(index))) {
        continue;
      }
      if (!Character.isSupplementaryCodePoint(text.codePointAt(index))) {
        return true;
      }
      index++; // over the other half
    }
    return false;
  }
}
