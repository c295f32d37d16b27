package main

import (
	"errors"
	"fmt"
	"strings"

	rerank "github.com/rerank-grpc/rerank-grpc/clients/go"
	rerankv1 "github.com/rerank-grpc/rerank-grpc/clients/go/rerank/v1"
)

// told is an object of JSON.
type told map[string]interface{}

// repeat says how often a part of a request stands in it.
type repeat struct {
	Query, ID, Text, Documents int
}

func (r repeat) apply(query *string, documents *[]*rerankv1.Document) {
	*query = times(*query, r.Query)
	if len(*documents) == 0 {
		return
	}
	first := (*documents)[0]
	first.Id, first.Text = times(first.Id, r.ID), times(first.Text, r.Text)
	if r.Documents == 0 {
		return
	}
	*documents = nil
	for number := 0; number < r.Documents; number++ {
		text := fmt.Sprintf("%s %d", first.Text, number)
		*documents = append(*documents, &rerankv1.Document{Id: first.Id, Text: text})
	}
}

func times(text string, count int) string {
	if count == 0 {
		return text
	}
	return strings.Repeat(text, count)
}

// call is what a reply and a summary say of the whole call.
type call interface {
	GetModel() string
	GetQueryTruncated() bool
}

func reranked(results []*rerankv1.RerankResult, call call) told {
	list := []told{}
	for _, result := range results {
		value := told{
			"index":           result.Index,
			"id":              result.Id,
			"relevance_score": float64(result.RelevanceScore),
			"logit":           float64(result.Logit),
			"tokens":          result.Tokens,
			"truncated":       result.Truncated,
		}
		if result.Document != nil {
			value["text"] = result.Document.Text
		}
		if chunk := result.BestChunk; chunk != nil {
			value["best_chunk"] = []uint32{chunk.Start, chunk.End}
		}
		if score := result.CalibratedScore; score != nil {
			value["calibrated_score"] = float64(*score)
		}
		list = append(list, value)
	}
	return told{"results": list, "model": call.GetModel(), "query_truncated": call.GetQueryTruncated()}
}

func listed(reply *rerankv1.ListModelsResponse) told {
	list := []told{}
	for _, model := range reply.GetModels() {
		value := told{
			"name":                model.Name,
			"aliases":             append([]string{}, model.Aliases...),
			"state":               state(model.State),
			"serving":             model.Serving,
			"accepts_instruction": model.AcceptsInstruction,
			"max_tokens":          model.MaxTokens,
		}
		if model.Calibration != nil {
			value["calibration"] = model.Calibration.Method
		}
		list = append(list, value)
	}
	return told{"models": list}
}

func healthy(reply *rerankv1.HealthResponse) told {
	return told{"health": told{
		"model": reply.GetModel(), "state": state(reply.GetState()), "serving": reply.GetServing(),
	}}
}

func state(state rerankv1.ModelState) string {
	return strings.TrimPrefix(state.String(), "MODEL_STATE_")
}

func failed(err error) told {
	failure := &rerank.Error{}
	if !errors.As(err, &failure) {
		return told{"error": told{"reason": err.Error(), "fields": []string{}, "retry": false}}
	}
	fields := []string{}
	for _, violation := range failure.Fields {
		fields = append(fields, violation.Field)
	}
	return told{"error": told{"reason": failure.Reason, "fields": fields, "retry": failure.RetryAfter > 0}}
}
